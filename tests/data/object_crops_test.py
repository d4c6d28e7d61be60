"""Objects cut out of images with boxes, pixel for pixel, and what is left out."""

import numpy as np
import pytest
from PIL import Image

from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.data.object_crops import window
from tests.data.detection_sets import SET, voc_kit

LARGE = {
    "a": ((100, 120), [("dog", 11, 21, 70, 80, 0), ("cat", 1, 1, 60, 60, 1)]),
    "b": ((90, 80), [("cat", 41, 31, 80, 90, 0), ("dog", 1, 1, 32, 32, 0)]),
    "c": ((80, 80), [("dog", 1, 1, 60, 60, 0)]),
}


def crops(tmp_path, size=66, **options):
    root = voc_kit(tmp_path, {"train": "ab", "test": "c"}, LARGE)
    options = {"batch_size": 4, "validation_size": 0, "scaling": "0..255"} | options
    config = DataConfig(str(root), labels="crops", image_size=size, **options)
    return root, load_dataset(config)


def pixels(root, name):
    return np.asarray(Image.open(root / "JPEGImages" / f"{name}.png"), "float32")


def test_objects_become_images_of_their_class(tmp_path):
    root, data = crops(tmp_path)
    assert data.holds == "classes" and data.class_names == ("cat", "dog")
    # Not the difficult one, nor the one of 32 x 32 pixels.
    assert data.sizes["train"] == 2 and data.sizes["test"] == 1
    assert data.config.augment == "flip_crop"
    ((images, labels),) = list(data.test())
    np.testing.assert_array_equal(images, pixels(root, "c")[None, :66, :66])
    assert labels.numpy().tolist() == [1]
    # 60 pixels times 1.1, and moved to lie inside: below b's box the image ends.
    split = data.splits["train"]
    train = dict(zip(split.labels.tolist(), split.images, strict=True))
    np.testing.assert_array_equal(train[1], pixels(root, "a")[17:83, 7:73])
    np.testing.assert_array_equal(train[0], pixels(root, "b")[24:90, 14:80])


def test_what_is_larger_than_the_image_is_all_of_it():
    assert window(np.array([0.0, 0.0, 1.0, 1.0]), 40, 60) == (0, 0, 40, 60)
    assert window(np.array([0.5, 0.0, 1.0, 0.25]), 20, 40) == (9, 0, 11, 11)


def test_sets_without_boxes_or_with_small_objects_are_refused(tmp_path):
    with pytest.raises(DataError, match="cut out of images whose data set has boxes"):
        load_dataset(DataConfig("digits", labels="crops"))
    small = {name: SET[name] for name in "bdf"}
    root = voc_kit(tmp_path, {"train": "bd", "test": "f"}, small)
    with pytest.raises(DataError, match="more than 32 x 32 pixels"):
        load_dataset(DataConfig(str(root), labels="crops"))


def test_a_class_without_large_objects_is_named(tmp_path):
    content = {**LARGE, "b": ((90, 80), [("cat", 1, 1, 20, 20, 0)])}
    root = voc_kit(tmp_path, {"train": "ab", "test": "c"}, content)
    with pytest.warns(UserWarning, match="shows an object of cat of more"):
        load_dataset(DataConfig(str(root), labels="crops", validation_size=0))


def test_the_default_size_is_64_or_what_the_model_reads(tmp_path):
    root = voc_kit(tmp_path, {"train": "ab", "test": "c"}, LARGE)
    config = DataConfig(str(root), labels="crops", validation_size=0)
    assert load_dataset(config).input_shape == (64, 64, 3)
    assert load_dataset(config, reads=(32, 48, 3)).input_shape == (32, 48, 3)
