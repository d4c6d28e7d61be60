"""TFDS shards: order, held-out examples, crops; against what was written."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.data import DataConfig, DataError, Dataset, stream
from gmpq_tf.data.decoding import ImageDecoder
from gmpq_tf.data.splits import Share, read_into_memory
from gmpq_tf.data.stream import StreamSplit, _shuffled


def numbered_split(data_dir, **options):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("numbered_set", data_dir=data_dir)
    return StreamSplit(builder, "train", ((0, 30),), ImageDecoder(16, 3), **options)


def labels_of(split, **options):
    batches = split.batches(4, **options)
    return [int(label) for _, labels in batches for label in labels]


@pytest.mark.parametrize("count", [0, 7, 30])
def test_held_out_and_kept_are_the_whole(numbered_tfds, count):
    kept, held = numbered_split(numbered_tfds).hold_out(count, seed=1)
    assert (kept.size, held.size) == (30 - count, count)
    assert len(labels_of(held)) == count
    assert sorted(labels_of(kept) + labels_of(held)) == list(range(30))


def test_the_same_are_held_out_as_in_memory(numbered_tfds):
    split = numbered_split(numbered_tfds)
    in_memory = read_into_memory(split, (16, 16, 3))
    for streamed, array in zip(
        split.hold_out(7, seed=2), in_memory.hold_out(7, seed=2), strict=True
    ):
        assert labels_of(streamed) == array.labels.tolist()


def test_large_splits_hold_out_a_run(numbered_tfds, monkeypatch):
    monkeypatch.setattr(stream, "SCATTER_LIMIT", 20)
    whole = labels_of(numbered_split(numbered_tfds))
    kept, held = numbered_split(numbered_tfds).hold_out(7, seed=1)
    run = labels_of(held)
    first = whole.index(run[0])
    assert run == whole[first : first + 7]
    assert labels_of(kept) == whole[:first] + whole[first + 7 :]


def test_seed_decides_the_order(numbered_tfds):
    split = numbered_split(numbered_tfds)
    first, again, other = (
        labels_of(split, seed=tf.constant([0, k], tf.int64)) for k in (1, 1, 2)
    )
    assert first == again != other
    assert sorted(first) == list(range(30))


def test_shares_are_the_parts_of_full_batches(numbered_tfds):
    split = numbered_split(numbered_tfds)
    seed = tf.constant([0, 1], tf.int64)
    whole = labels_of(split, seed=seed)
    for index in (0, 1):
        expected = [x for k in range(0, 28, 4) for x in whole[k:][2 * index :][:2]]
        assert labels_of(split, seed=seed, share=Share(index, 2)) == expected


def test_number_of_batches_is_known(numbered_tfds):
    kept, _ = numbered_split(numbered_tfds).hold_out(7, seed=1)
    assert kept.batches(4).cardinality() == 6
    assert kept.batches(4, drop_remainder=True).cardinality() == 5


def test_crop_is_what_is_decoded(numbered_tfds):
    """Against the same part of the images as TFDS decodes them."""
    split = numbered_split(numbered_tfds)
    split = StreamSplit(split.builder, "train", ((0, 6),), ImageDecoder(8, 3))

    def crop(shape, place):
        return tf.stack([tf.cast(place, tf.int32), 2, 8, 8])

    ((crops, _),) = split.batches(6, crop=crop)
    whole = split.builder.as_dataset(split="train[:6]")
    for place, (image, example) in enumerate(zip(crops, whole, strict=True)):
        expected = example["image"][place : place + 8, 2:10]
        np.testing.assert_array_equal(image, expected)


def test_window_shuffle_keeps_every_example_near_its_place():
    examples = tf.data.Dataset.range(100).map(lambda i: (2 * i, i))
    orders = [
        list(_shuffled(examples, 20, tf.constant([0, k])).as_numpy_iterator())
        for k in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == [(2 * i, i) for i in range(100)]
    assert all(abs(i - place) < 20 for place, (_, i) in enumerate(orders[0]))


def test_cifar10_is_that_of_tfds(shared_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("cifar10", data_dir=shared_dir / "data" / "tfds")
    decode = ImageDecoder(32, 3, stored_side=32)
    split = StreamSplit(builder, "test", ((0, 64),), decode)
    expected = builder.as_dataset(split="test[:64]", as_supervised=True)
    images, labels = next(iter(split.batches(64)))
    for image, label, (image2, label2) in zip(images, labels, expected, strict=True):
        np.testing.assert_array_equal(image, image2)
        assert label == label2


def test_shard_damaged_in_its_middle_is_named(numbered_tfds, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(numbered_tfds, copy)
    split = numbered_split(copy)
    (shard,) = copy.rglob("*-train.tfrecord*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    config = DataConfig("folder", scaling="0..255", batch_size=4, augment="none")
    names = tuple("ab")
    dataset = Dataset(config, {"train": split}, (16, 16, 3), names)
    with (
        pytest.raises(DataError, match=r"split 'train', after \d+ in stored order"),
        dataset.naming_damaged_images(),
    ):
        for _ in dataset.train(epochs=1):
            pass
