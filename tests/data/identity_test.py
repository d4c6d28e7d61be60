"""What tells one set of images from another."""

import os

import numpy as np
import pytest
from PIL import Image

from gmpq_tf.data import DataConfig, load_dataset


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, "uint8")).save(path)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            for number in range(4):
                picture(tmp_path / split / label / f"{number}.png", number)
    return tmp_path


def identities(folder, **options):
    config = DataConfig(str(folder), image_size=8, validation_size=2, **options)
    dataset = load_dataset(config)
    return {name: dataset.identity(name) for name in ("train", "validation", "test")}


@pytest.mark.slow
def test_images_added_changed_removed_and_moved_to_another_class(folder):
    first = identities(folder)
    assert identities(folder) == first
    assert identities(folder, cache=False) == first
    assert len({*first.values()}) == 3
    picture(folder / "test" / "a" / "more.png", 7)
    added = identities(folder)
    assert added["test"] != first["test"]
    assert added["train"] == first["train"]
    (folder / "test" / "a" / "more.png").rename(folder / "test" / "b" / "more.png")
    assert identities(folder)["test"] not in (first["test"], added["test"])
    (folder / "test" / "b" / "more.png").unlink()
    assert identities(folder) == first
    os.utime(folder / "train" / "a" / "0.png", (1, 1))
    assert identities(folder)["test"] == first["test"]
    changed = identities(folder)
    assert changed["train"] != first["train"] or (
        changed["validation"] != first["validation"]
    )


def test_a_moved_folder_holds_the_same_images(folder, tmp_path):
    first = identities(folder)
    (folder / "moved").mkdir()
    for name in ("train", "test"):
        (folder / name).rename(folder / "moved" / name)
    assert identities(folder / "moved") == first


def test_a_set_in_memory_and_a_missing_split():
    dataset = load_dataset(DataConfig("digits"))
    assert dataset.identity("test") == load_dataset(DataConfig("digits")).identity(
        "test"
    )
    assert dataset.identity("nothing") == ""
