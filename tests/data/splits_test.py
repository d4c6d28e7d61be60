"""Splits in memory and in files; decoding against Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gmpq_tf.data.splits import (
    ArraySplit,
    _shuffled,
    read_into_memory,
    resize,
    square_decoder,
)


@pytest.fixture
def split():
    labels = np.arange(20, dtype=np.int64)
    images = np.broadcast_to(labels[:, None, None, None], (20, 2, 2, 1))
    return ArraySplit(images.astype(np.uint8), labels)


def labels_of(batches):
    return [int(label) for _, labels in batches for label in labels]


def encode(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


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


def test_decoder_keeps_the_centre_square():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 6, 3), np.uint8)
    image = square_decoder(6, channels=3)(tf.constant(encode(pixels)))
    np.testing.assert_array_equal(image, pixels[2:8])
    half = square_decoder(3, channels=3, crop_fraction=0.5)(tf.constant(encode(pixels)))
    np.testing.assert_array_equal(half, pixels[3:6, 1:4])


def test_resize_agrees_with_pillow():
    ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4
    expected = np.asarray(
        Image.fromarray(ramp).resize((8, 8), Image.Resampling.BILINEAR)
    )
    result = resize(tf.constant(ramp[..., None]), 8).numpy()[..., 0]
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_resize_leaves_fitting_images_alone():
    images = tf.zeros([1, 4, 4, 3], tf.uint8)
    assert resize(images, 4) is images


def test_window_shuffle_keeps_every_example_near_its_place():
    examples = tf.data.Dataset.range(100).map(lambda i: (2 * i, i))
    orders = [
        list(_shuffled(examples, 20, tf.constant([0, k])).as_numpy_iterator())
        for k in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == [(2 * i, i) for i in range(100)]
    assert all(abs(i - place) < 20 for place, (_, i) in enumerate(orders[0]))
