"""Pipelines on digits: disjoint splits, epochs that resume, refusals."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from gmpq_tf.data import DataConfig, DataError, check_num_classes, load_dataset
from gmpq_tf.data.checks import check_labels
from gmpq_tf.data.datasets import DATASETS
from gmpq_tf.data.spec import Raw
from gmpq_tf.data.splits import ArraySplit, Share

CONFIG = DataConfig("digits", scaling="0..255", batch_size=100)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(CONFIG)


def images_of(batches):
    return [bytes(np.uint8(image)) for images, _ in batches for image in images]


def test_sizes_and_shapes(digits):
    assert digits.sizes == {"train": 1150, "validation": 288, "test": 359}
    assert digits.input_shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert digits.steps_per_epoch == 11
    images, labels = digits.train().element_spec
    assert images == tf.TensorSpec([100, 8, 8, 1], tf.float32)
    assert labels == tf.TensorSpec([100], tf.int64)


def test_splits_are_a_partition(digits):
    plain = dataclasses.replace(CONFIG, augment="none", batch_size=1)
    dataset = load_dataset(plain)
    parts = [dataset.train(0, 1), dataset.validation(), dataset.test()]
    every = sorted(image for part in parts for image in images_of(part))
    original = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert every == sorted(map(bytes, original))


def test_split_seed_alone_moves_the_validation_images(digits):
    def held(**options):
        dataset = load_dataset(dataclasses.replace(CONFIG, **options))
        return images_of(dataset.validation())

    assert held() == held(seed=5)
    assert held() != held(split_seed=5)


def test_epochs_differ_and_can_be_resumed(digits):
    through = list(digits.train(0, 3).as_numpy_iterator())
    resumed = list(digits.train(2, 1).as_numpy_iterator())
    for (images, labels), (images2, labels2) in zip(through[22:], resumed, strict=True):
        np.testing.assert_array_equal(labels, labels2)
        np.testing.assert_array_equal(images, images2)
    assert not np.array_equal(through[0][1], through[11][1])


def test_train_goes_on_and_epochs_are_counted(digits):
    assert digits.train().cardinality() == tf.data.INFINITE_CARDINALITY
    assert digits.train(1, 2).cardinality() == 22
    assert len(list(digits.train().take(30))) == 30
    assert digits.validation().cardinality() == 3


def test_train_shifts_and_calibration_does_not(digits):
    original = set(map(bytes, digits.splits["train"].images))
    calibration = images_of(digits.calibration(150))
    assert len(calibration) == 150
    assert set(calibration) <= original
    assert not set(images_of(digits.train(0, 1))) <= original


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("augment", ["random_crop", "random_resized_crop"])
def test_random_crops_of_images_in_memory(digits, augment):
    dataset = load_dataset(dataclasses.replace(CONFIG, augment=augment))
    through = list(dataset.train(0, 2).as_numpy_iterator())
    resumed = list(dataset.train(1, 1).as_numpy_iterator())
    for (images, labels), (images2, labels2) in zip(through[11:], resumed, strict=True):
        np.testing.assert_array_equal(images, images2)
        np.testing.assert_array_equal(labels, labels2)
    original = set(map(bytes, digits.splits["train"].images))
    varied = images_of(dataset.train(0, 1))
    assert len(set(varied) - original) > len(varied) / 2
    assert images_of(dataset.validation()) == images_of(digits.validation())


def test_crops_do_not_depend_on_the_batch_size():
    """Image k of an epoch is cropped alike, however many lie in a batch."""

    def epoch(batch_size):
        # Flips are drawn for whole batches: compare what they do not change.
        config = dataclasses.replace(
            CONFIG, augment="random_crop", batch_size=batch_size
        )
        batches = load_dataset(config).train(0, 1).take(100 // batch_size)
        return np.concatenate([np.sort(images, axis=2) for images, _ in batches])

    np.testing.assert_array_equal(epoch(50), epoch(25))


def test_calibration_takes_what_there_is(digits):
    assert len(images_of(digits.calibration(5000))) == 1150


def test_image_size_resizes(digits):
    dataset = load_dataset(dataclasses.replace(CONFIG, image_size=16))
    assert dataset.input_shape == (16, 16, 1)
    for batches in (dataset.train(), dataset.test(), dataset.calibration(5)):
        assert batches.element_spec[0].shape[1:] == (16, 16, 1)


def test_scaling_reaches_every_pipeline():
    config = dataclasses.replace(CONFIG, scaling="-1..1")
    dataset = load_dataset(config)
    for batches in (dataset.train(), dataset.validation(), dataset.calibration()):
        images = next(iter(batches))[0].numpy()
        assert (images.min(), images.max()) == (-1.0, 1.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validation_size": 1438}, "validation_size=1438 of 1438"),
        ({"batch_size": 1151}, "batch_size=1151 with 1150"),
        ({"scaling": "mean_std"}, "needs `mean`"),
        (
            {"scaling": "mean_std", "mean": (0.5,) * 3, "std": (0.2,) * 3},
            "1 channels",
        ),
    ],
)
def test_what_does_not_suit_the_set_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        load_dataset(dataclasses.replace(CONFIG, **options)).train()


def test_empty_split_is_refused_when_asked_for():
    dataset = load_dataset(dataclasses.replace(CONFIG, validation_size=0))
    with pytest.raises(DataError, match="validation split must not be empty"):
        dataset.validation()


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_refused(label):
    split = ArraySplit(np.zeros((4, 1, 1, 1), np.uint8), np.array([0, 1, label, label]))
    with pytest.raises(DataError, match=rf"label {label} of image 2.*and 1 more"):
        check_labels(split, 3, "train")


def test_labels_are_checked_when_a_set_is_loaded(monkeypatch):
    split = ArraySplit(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 2, 3]))
    spec = dataclasses.replace(
        DATASETS["digits"],
        source=lambda config, spec: Raw({"train": split}, (2, 2, 1), ("a", "b")),
    )
    monkeypatch.setitem(DATASETS, "wrong", spec)
    with pytest.raises(DataError, match=r"0\.\.1"):
        load_dataset(DataConfig("wrong"))


def test_number_of_classes_is_checked(digits):
    check_num_classes((None, 10), digits)
    with pytest.raises(DataError, match="of 10 classes"):
        check_num_classes((None, 1000), digits)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("augment", ["none", "flip_crop", "random_resized_crop"])
@pytest.mark.parametrize("count", [2, 4])
def test_shares_of_a_batch_are_the_batch(augment, count):
    config = DataConfig("digits", batch_size=200, augment=augment)
    data = load_dataset(config)
    whole = list(data.train(3, 2).as_numpy_iterator())
    shares = [
        list(data.train(3, 2, Share(i, count)).as_numpy_iterator())
        for i in range(count)
    ]
    assert [len(batches) for batches in shares] == [len(whole)] * count
    assert data.sizes["train"] % 200  # a last, smaller batch that nobody takes
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        for k in (0, 1):
            together = np.concatenate([part[k] for part in parts])
            np.testing.assert_array_equal(together, batch[k])
