"""COCO files: the same as the VOC folder of the same objects; what is refused."""

import json

import numpy as np
import pytest

from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.data.object_files import samples
from tests.data.detection_sets import coco_content, coco_set, picture, voc_kit


def load(root, **options):
    options = {"image_size": 16, "batch_size": 2} | options
    return load_dataset(DataConfig(str(root), **options))


def test_the_same_objects_as_a_voc_folder(tmp_path):
    coco = load(coco_set(tmp_path / "coco"))
    voc = load(voc_kit(tmp_path / "voc"))
    assert coco.holds == "boxes" and coco.class_names == voc.class_names
    assert coco.sizes == voc.sizes == {"train": 4, "validation": 1, "test": 1}
    for name in coco.sizes:
        pairs = zip(samples(coco.splits[name]), samples(voc.splits[name]), strict=True)
        for one, other in pairs:
            for key in ("image", "labels", "difficult"):
                np.testing.assert_array_equal(one[key], other[key])
            np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-7)


def test_a_category_without_objects_is_named(tmp_path):
    """As those that some programs put above all others."""
    root = coco_set(tmp_path)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["categories"].insert(1, {"id": 0, "name": "animals"})
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"an object of animals: .* 1 of 3 classes"):
        data = load(root)
    assert data.class_names == ("animals", "cat", "dog")
    (sample,) = samples(data.splits["test"])  # of a file without that category
    assert sample["labels"].tolist() == [2]


def test_one_file_anywhere_and_other_layouts(tmp_path):
    for name in "abcdef":
        picture(
            tmp_path / "images" / "deep" / f"{name}.png",
            {
                "a": (40, 60),
                "b": (30, 30),
                "c": (50, 40),
                "d": (20, 64),
                "e": (20, 64),
                "f": (32, 32),
            }[name],
        )
    path = tmp_path / "all.json"
    path.write_text(json.dumps(coco_content("abcdef", "deep/")))
    for named in (
        {"dataset": str(path)},
        {"dataset": "coco_json", "data_dir": str(path)},
        {"dataset": "coco_json", "data_dir": str(tmp_path)},
    ):
        data = load_dataset(DataConfig(image_size=16, validation_size=1, **named))
        assert data.sizes == {"train": 4, "validation": 1, "test": 1}
    other = tmp_path / "roboflow"
    for split in ("train", "valid"):
        picture(other / split / "f.png", (32, 32))
        (other / split / "_annotations.coco.json").write_text(
            json.dumps(coco_content("f"))
        )
    data = load(other, validation_size=0)
    assert data.sizes == {"train": 1, "validation": 0, "test": 1}


def change(content, path, value):
    *keys, last = path
    for key in keys:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


BOX = ("annotations", 0, "bbox")
HOSTILE = {
    "no images": (("images",), None, "'images' must be a list"),
    "images no list": (("images",), {"a": 1}, "'images' must be a list"),
    "rows no objects": (
        ("annotations",),
        [1, 2],
        "'annotations' must be a list of obj",
    ),
    "id twice": (("images", 1, "id"), 5, "'images': id must be another"),
    "unhashable id": (("images", 1, "id"), [5], "'images': id must be"),
    "no name": (("categories", 0, "name"), None, "id 7: name must be a text"),
    "name twice": (("categories", 0, "name"), "dog", "each of another name"),
    "no categories": (("categories",), [], "one or more"),
    "unknown image": (
        ("annotations", 0, "image_id"),
        999,
        "image_id must be of an image",
    ),
    "unknown category": (
        ("annotations", 0, "category_id"),
        8,
        "of a category, and is 8",
    ),
    "list as category": (("annotations", 0, "category_id"), [7], "of a category"),
    "absolute": (("images", 0, "file_name"), "/etc/passwd.png", "below the folder"),
    "up": (("images", 0, "file_name"), "../../x.png", "below the folder"),
    "windows": (("images", 0, "file_name"), "C:\\x.png", "below the folder"),
    "no image": (("images", 0, "file_name"), "x.txt", "suffix"),
    "missing": (("images", 0, "file_name"), "zz.png", "looked for in"),
    "same twice": (("images", 1, "file_name"), "a.png", "of one entry only"),
    "other size": (("images", 0, "width"), 61, "61 x 40.* of 60 x 40"),
    "size no number": (("images", 0, "width"), "60", "whole numbers"),
    "no box": (BOX, None, "four numbers"),
    "three numbers": (BOX, [1, 2, 3], "four numbers"),
    "texts": (BOX, ["1", 2, 3, 4], "four numbers"),
    "swapped": (BOX, [30, 10, -20, 5], "corners are swapped"),
    "empty box": (BOX, [3, 3, 0, 5], "empty"),
    "outside": (BOX, [50, 3, 11, 5], "inside its image"),
    "negative": (BOX, [-1, 3, 11, 5], "inside its image"),
    "huge": (BOX, [0, 0, 10**400, 5], "finite"),
    "many": (
        ("annotations",),
        [{"image_id": 5, "category_id": 7, "bbox": [0, 0, 5, 5]}] * 1001,
        "1001",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path, kind):
    place, value, match = HOSTILE[kind]
    path = coco_set(tmp_path) / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content, place, value)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"(?s){match}") as raised:
        load(tmp_path)
    assert str(path) in str(raised.value) and "Received:" in str(raised.value)
    assert len(str(raised.value)) < 900


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "whole JSON file"),
        ("[]", "must be an object"),
        ("[" * 200_000, "whole JSON file"),
        ('{"images": NaN}', "NaN is no number"),
    ],
)
def test_what_is_no_such_json(tmp_path, text, match):
    path = coco_set(tmp_path) / "annotations" / "instances_train2017.json"
    path.write_text(text)
    with pytest.raises(DataError, match=match) as raised:
        load(tmp_path)
    assert str(path) in str(raised.value)


def test_files_that_do_not_fit_each_other(tmp_path):
    path = coco_set(tmp_path) / "annotations" / "instances_test2017.json"
    path.write_text(path.read_text().replace('"dog"', '"dogs"'))
    with pytest.raises(
        DataError, match=r"test2017\.json with 'dogs'\. Did you mean 'dog'"
    ):
        load(tmp_path)
    (tmp_path / "annotations" / "instances_train2014.json").write_text("{}")
    with pytest.raises(DataError, match=r"one annotation file a split.*2014.*2017"):
        load(tmp_path)
    with pytest.raises(DataError, match="needs the annotations of its training images"):
        load_dataset(DataConfig("coco_json", str(tmp_path / "test2017"), image_size=8))


def test_edges_that_another_program_rounded_lie_on_the_edge(tmp_path):
    path = coco_set(tmp_path) / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [0, 0, 60.004, 40]
    path.write_text(json.dumps(content))
    assert next(samples(load(tmp_path).splits["train"]))["boxes"][0].tolist() == [
        0,
        0,
        1,
        1,
    ]
