"""Splits in memory: order, crops and held-out images."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.data.decoding import resize
from gmpq_tf.data.splits import ArraySplit, read_into_memory, stratified_split


@pytest.fixture
def split():
    labels = np.arange(20, dtype=np.int64)
    images = np.broadcast_to(labels[:, None, None, None], (20, 2, 2, 1))
    return ArraySplit(images.astype(np.uint8), labels)


def labels_of(batches):
    return [int(label) for _, labels in batches for label in labels]


def test_stored_order_without_seed(split):
    assert labels_of(split.batches(6)) == list(range(20))


def test_seed_decides_the_order_and_pairs_stay(split):
    batches = list(split.batches(6, seed=tf.constant([0, 1], tf.int64)))
    order = labels_of(batches)
    assert sorted(order) == list(range(20))
    assert order != list(range(20))
    assert order == labels_of(split.batches(6, seed=tf.constant([0, 1], tf.int64)))
    for images, labels in batches:
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_global_seed_changes_nothing(split):
    tf.random.set_seed(1)
    first = labels_of(split.batches(6, seed=tf.constant([0, 1], tf.int64)))
    tf.random.set_seed(2)
    assert first == labels_of(split.batches(6, seed=tf.constant([0, 1], tf.int64)))


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_held_out_and_kept_are_the_whole(split, count):
    kept, held = split.hold_out(count, seed=3)
    assert held.size == count
    assert sorted([*kept.labels, *held.labels]) == list(range(20))


def test_held_out_depends_on_the_seed(split):
    first, again, other = (split.hold_out(5, seed)[1].labels for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_read_into_memory_copies_everything(split):
    copy = read_into_memory(split, (2, 2, 1))
    np.testing.assert_array_equal(copy.images, split.images)
    np.testing.assert_array_equal(copy.labels, split.labels)


def test_stratified_split_keeps_proportions():
    labels = np.repeat([0, 1, 2], [10, 20, 1])
    kept, held = stratified_split(labels, 0.2, seed=0)
    assert sorted([*kept, *held]) == list(range(31))
    assert np.bincount(labels[held], minlength=3).tolist() == [2, 4, 0]


def test_crop_sees_each_place_and_is_resized_back(photograph):
    images = np.stack([photograph(8, 8, seed) for seed in range(6)])
    split = ArraySplit(images, np.arange(6))

    def crop(shape, place):
        return tf.stack([0, 0, shape[0] - 4, tf.cast(place, tf.int32) + 1])

    ((crops, labels),) = split.batches(6, tf.constant([0, 1], tf.int64), crop=crop)
    assert sorted(labels.numpy()) == list(range(6)) != list(labels.numpy())
    for place, (image, label) in enumerate(zip(crops, labels, strict=True)):
        expected = resize(tf.constant(images[label][:4, : place + 1]), 8)
        np.testing.assert_array_equal(image, expected)
