"""Digits, folders and TFDS, each against what was written or another loader."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.data.sources import stratified_split
from gmpq_tf.data.splits import StreamSplit, square_decoder


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


def test_digits_are_those_of_scikit_learn():
    dataset = load_dataset(DataConfig("digits", scaling="0..255", validation_size=0))
    images = np.concatenate([dataset.splits[n].images for n in ("train", "test")])
    original = np.round(load_digits().images * 255 / 16)
    assert images.shape == (1797, 8, 8, 1)
    assert sorted(map(bytes, images)) == sorted(map(bytes, original.astype(np.uint8)))


def test_stratified_split_keeps_proportions():
    labels = np.repeat([0, 1, 2], [10, 20, 1])
    kept, held = stratified_split(labels, 0.2, seed=0)
    assert sorted([*kept, *held]) == list(range(31))
    assert np.bincount(labels[held], minlength=3).tolist() == [2, 4, 0]


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


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory):
    """A prepared TFDS set of 40 grey images whose value is twice their label."""
    pytest.importorskip("importlib_resources")
    tfds = pytest.importorskip("tensorflow_datasets")
    data_dir = tmp_path_factory.mktemp("tfds")
    labels = tf.data.Dataset.range(40).map(lambda i: i % 5)
    examples = labels.map(
        lambda label: {
            "image": tf.fill([4, 4, 3], tf.cast(2 * label, tf.uint8)),
            "label": label,
        }
    )
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(4, 4, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=5),
        }
    )
    builder = tfds.dataset_builders.AdhocBuilder(
        name="tiny_set",
        version="1.0.0",
        features=features,
        split_datasets={"train": examples},
        data_dir=str(data_dir),
    )
    builder.download_and_prepare()
    return str(data_dir)


@pytest.mark.parametrize("cache", [True, False])
def test_tfds_set_without_a_row(tiny_tfds, cache):
    config = DataConfig(
        "tiny_set",
        tiny_tfds,
        scaling="0..255",
        batch_size=8,
        validation_size=4,
        augment="none",
        cache=cache,
    )
    dataset = load_dataset(config)
    assert dataset.sizes == {"train": 28, "validation": 4, "test": 8}
    assert dataset.input_shape == (4, 4, 3)
    for batches in (dataset.train(0, 2), dataset.validation(), dataset.test()):
        pairs = values_and_labels(batches)
        assert pairs and all(value == 2 * label for value, label in pairs)


def test_streamed_epochs_can_be_resumed(tiny_tfds):
    config = DataConfig(
        "tiny_set", tiny_tfds, batch_size=8, validation_size=4, cache=False
    )
    dataset = load_dataset(config)
    through = list(dataset.train(0, 3).as_numpy_iterator())[-3:]
    resumed = list(dataset.train(2, 1).as_numpy_iterator())
    for (images, labels), (images2, labels2) in zip(through, resumed, strict=True):
        np.testing.assert_array_equal(labels, labels2)
        np.testing.assert_array_equal(images, images2)


def test_stream_hold_out_is_disjoint(tiny_tfds):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("tiny_set", data_dir=tiny_tfds)
    split = StreamSplit(builder, "train", ((0, 40),), square_decoder(None, 3))
    kept, held = split.hold_out(7, seed=1)
    parts = [set(range(a, b)) for s in (kept, held) for a, b in s.ranges]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 40
    assert (kept.size, held.size) == (33, 7)


def test_unknown_name_offers_the_nearest():
    with pytest.raises(DataError, match=r"cifr10.*Nearest.*cifar10"):
        load_dataset(DataConfig("cifr10"))


def test_set_that_is_not_on_disk_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"tfds\.load\('cifar10', data_dir="):
        load_dataset(DataConfig("cifar10", str(tmp_path)))


def test_cifar10_is_that_of_tfds(shared_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("cifar10", data_dir=shared_dir / "data" / "tfds")
    split = StreamSplit(builder, "test", ((0, 64),), square_decoder(None, 3))
    expected = builder.as_dataset(split="test[:64]", as_supervised=True)
    images, labels = next(iter(split.batches(64)))
    for image, label, (image2, label2) in zip(images, labels, expected, strict=True):
        np.testing.assert_array_equal(image, image2)
        assert label == label2


def test_tfds_set_of_another_kind_is_refused(shared_dir):
    config = DataConfig("voc/2012", str(shared_dir / "data" / "tfds"), image_size=64)
    with pytest.raises(DataError, match="image classification set"):
        load_dataset(config)
