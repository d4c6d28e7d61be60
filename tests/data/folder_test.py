"""Folders of images against what was written; what is wrong with them is named."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gmpq_tf.data import DataConfig, DataError, load_dataset


def write_images(folder, count, value, side=8):
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.full((side + index % 3, side, 3), value, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture
def image_folder(tmp_path):
    for value, name in enumerate(["ant", "bee", "cat"]):
        write_images(tmp_path / "images" / name, 10, 50 * value)
    return tmp_path / "images"


def folder_config(folder, **options):
    options = {"image_size": 8, "batch_size": 4, "augment": "none"} | options
    return DataConfig(str(folder), scaling="0..255", **options)


def values_and_labels(batches):
    return [
        (float(image.numpy().mean()), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]


@pytest.mark.parametrize("cache", [True, False])
def test_folder_without_splits(image_folder, cache):
    dataset = load_dataset(folder_config(image_folder, cache=cache))
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.sizes == {"train": 22, "validation": 2, "test": 6}
    pairs = values_and_labels(dataset.test())
    assert sorted(pairs) == sorted((50.0 * k, k) for k in range(3) for _ in range(2))
    assert all(value == 50.0 * k for value, k in values_and_labels(dataset.train(0, 1)))


def test_folder_given_by_data_dir(image_folder):
    config = DataConfig("folder", str(image_folder), image_size=8)
    assert load_dataset(config).num_classes == 3


@pytest.mark.parametrize("extra", [("val",), ("test",), ("validation", "test")])
def test_folder_with_splits(tmp_path, extra):
    for count, split in zip([5, 3, 2], ["train", *extra], strict=False):
        for value, name in enumerate(["ant", "bee"]):
            write_images(tmp_path / split / name, count, 100 * value)
    dataset = load_dataset(folder_config(tmp_path, validation_size=1))
    two = len(extra) == 2
    expected = (10, 6, 4) if two else (9, 1, 6)
    assert tuple(dataset.sizes.values()) == expected


def test_folder_of_one_class(tmp_path):
    write_images(tmp_path / "only", 3, 0)
    with pytest.raises(DataError, match=r"two classes at least.*only"):
        load_dataset(folder_config(tmp_path))


def test_folder_with_unknown_class_in_test(image_folder, tmp_path):
    image_folder.rename(tmp_path / "train")
    write_images(tmp_path / "test" / "bees", 1, 0)
    with pytest.raises(DataError, match=r"bees.*Did you mean 'bee'"):
        load_dataset(folder_config(tmp_path))


def test_folder_needs_image_size(image_folder):
    with pytest.raises(DataError, match="image_size=None"):
        load_dataset(folder_config(image_folder, image_size=None))


def test_folder_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="folder that exists"):
        load_dataset(DataConfig("folder", str(tmp_path / "nowhere"), image_size=8))


@pytest.mark.parametrize("content", ["empty", "text", "truncated"])
def test_corrupt_file_is_named(image_folder, content):
    path = image_folder / "bee" / "3.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    contents = {"empty": b"", "text": b"not an image"}
    path.write_bytes(contents.get(content, path.read_bytes()[:3000]))
    with pytest.raises(DataError, match=r"bee.3\.png"):
        load_dataset(folder_config(image_folder))


def test_folder_images_that_are_not_images_are_ignored(image_folder):
    (image_folder / "bee" / "notes.txt").write_text("about bees")
    assert sum(load_dataset(folder_config(image_folder)).sizes.values()) == 30


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("cache", [True, False])
def test_truncated_file_is_named_before_training(image_folder, photograph, kind, cache):
    """Without a cache nothing else would decode it before an epoch breaks off."""
    path = image_folder / "bee" / f"cut.{kind}"
    Image.fromarray(photograph(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"bee.cut\.{kind}.*truncated"):
        load_dataset(folder_config(image_folder, cache=cache))


def damage_middle(path):
    """Leaves a PNG's beginning and end as they are: only decoding tells."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [damage_middle, os.remove])
@pytest.mark.parametrize("batches", ["train", "calibration"])
def test_image_that_breaks_off_a_training_is_named(image_folder, harm, batches):
    if harm is damage_middle:
        harm(image_folder / "bee" / "3.png")
    dataset = load_dataset(folder_config(image_folder, cache=False, validation_size=0))
    if harm is os.remove:  # while it trains
        harm(dataset.splits["train"].paths[5])
    named = r"\.png.*" if harm is os.remove else r"bee.3\.png"
    with (
        pytest.raises(DataError, match=named),
        dataset.naming_damaged_images(),
    ):
        arguments = {"epochs": 3} if batches == "train" else {}
        for _ in getattr(dataset, batches)(**arguments):
            pass


def test_errors_that_no_image_made_stay_what_they_are(image_folder):
    dataset = load_dataset(folder_config(image_folder, cache=False))
    with (
        pytest.raises(tf.errors.InvalidArgumentError, match="of the model"),
        dataset.naming_damaged_images(),
    ):
        tf.debugging.assert_equal(1, 2, "of the model")


def test_jpeg_with_bytes_after_its_end_is_read(image_folder, photograph):
    path = image_folder / "bee" / "long.jpg"
    Image.fromarray(photograph(64, 64)).save(path)
    path.write_bytes(path.read_bytes() + b"some camera's notes")
    assert sum(load_dataset(folder_config(image_folder)).sizes.values()) == 31


def test_format_that_tensorflow_does_not_read_is_named(image_folder, photograph):
    path = image_folder / "bee" / "web.jpg"
    Image.fromarray(photograph(8, 8)).save(path, "TIFF")
    with pytest.raises(DataError, match=r"bee.web\.jpg"):
        load_dataset(folder_config(image_folder))


def test_class_without_images_is_named(image_folder):
    (image_folder / "dog").mkdir()
    with pytest.raises(DataError, match=r"training images.*dog"):
        load_dataset(folder_config(image_folder))


def test_random_crop_reads_other_parts_each_epoch(tmp_path, photograph):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for index in range(5):
            pixels = photograph(40, 60, index)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.jpg")
    config = folder_config(tmp_path, augment="random_resized_crop", validation_size=0)
    dataset = load_dataset(config)
    first, second, again = (
        [images for images, _ in dataset.train(epoch, 1).as_numpy_iterator()]
        for epoch in (0, 1, 0)
    )
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)


def link_to_itself(folder):
    (folder / "loop.png").symlink_to(folder / "loop.png")


def link_to_nothing(folder):
    (folder / "gone.png").symlink_to("nowhere.png")


def pipe(folder):
    os.mkfifo(folder / "pipe.png")


def folder_of_that_name(folder):
    (folder / "album.jpg").mkdir()


def name_that_is_no_text(folder):
    source = next(folder.glob("*.png"))
    shutil.copy(source, os.fsencode(folder) + b"/caf\xe9.png")


@pytest.mark.parametrize(
    "make",
    [link_to_itself, link_to_nothing, pipe, folder_of_that_name, name_that_is_no_text],
)
def test_what_only_looks_like_an_image_is_named(image_folder, make):
    make(image_folder / "bee")
    with pytest.raises(DataError, match=r"bee.*(png|jpg)"):
        load_dataset(folder_config(image_folder))


def test_links_to_folders_above_are_not_followed_for_ever(image_folder):
    (image_folder / "bee" / "up").symlink_to(image_folder)
    dataset = load_dataset(folder_config(image_folder))
    assert sum(dataset.sizes.values()) == 30


@pytest.mark.parametrize(
    "name", ["a b", "new\nline", "quote'\"", "*?[x]", "%s{0}", "é"]
)
def test_odd_names_are_read(image_folder, name):
    source = image_folder / "bee" / "0.png"
    shutil.copy(source, image_folder / "bee" / f"{name}.png")
    (image_folder / "cat").rename(image_folder / name)
    dataset = load_dataset(folder_config(image_folder, validation_size=0))
    assert sum(dataset.sizes.values()) == 31 and name in dataset.class_names
    assert len(values_and_labels(dataset.test())) == 6


def test_an_image_of_more_pixels_than_fit_in_memory_is_named(image_folder, monkeypatch):
    monkeypatch.setattr("gmpq_tf.data.folder.MAX_PIXELS", 71)
    with pytest.raises(DataError, match=r"at most 71 pixels.*ant.1\.png.*shrink"):
        load_dataset(folder_config(image_folder))


@pytest.mark.parametrize("name", ["~no_such_user/images", "x" * 1000])
def test_a_folder_that_cannot_be(name):
    with pytest.raises(DataError, match="folder that exists"):
        load_dataset(DataConfig("folder", name, image_size=8))
