"""Image files and prepared TFDS sets, small and made here."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image


@pytest.fixture(scope="session")
def encode_image():
    """From pixels to the content of an image file."""

    def encode(pixels, kind="PNG", **options):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def photograph():
    """From height, width and a seed to pixels that vary smoothly and in every place."""

    def make(height, width, seed=0):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        return np.asarray(image)

    return make


def prepare_tfds(name, data_dir, examples, image, classes):
    """Write a TFDS set of one training split."""
    pytest.importorskip("importlib_resources")
    tfds = pytest.importorskip("tensorflow_datasets")
    label = tfds.features.ClassLabel(num_classes=classes)
    features = tfds.features.FeaturesDict({"image": image(tfds), "label": label})
    tfds.dataset_builders.AdhocBuilder(
        name=name,
        version="1.0.0",
        features=features,
        split_datasets={"train": examples},
        data_dir=str(data_dir),
    ).download_and_prepare()
    return str(data_dir)


@pytest.fixture(scope="session")
def tiny_tfds(tmp_path_factory):
    """A prepared TFDS set of 40 grey images whose value is twice their label."""
    labels = tf.data.Dataset.range(40).map(lambda i: i % 5)
    examples = labels.map(
        lambda label: {
            "image": tf.fill([4, 4, 3], tf.cast(2 * label, tf.uint8)),
            "label": label,
        }
    )
    return prepare_tfds(
        "tiny_set",
        tmp_path_factory.mktemp("tfds"),
        examples,
        lambda tfds: tfds.features.Image(shape=(4, 4, 3), encoding_format="png"),
        classes=5,
    )


@pytest.fixture(scope="session")
def numbered_tfds(tmp_path_factory, photograph):
    """A prepared TFDS set of 30 JPEG photographs of 60 x 80, label = place written."""
    images = np.stack([photograph(60, 80, seed) for seed in range(30)])
    examples = tf.data.Dataset.from_tensor_slices(
        {"image": images, "label": np.arange(30)}
    )
    return prepare_tfds(
        "numbered_set",
        tmp_path_factory.mktemp("tfds"),
        examples,
        lambda tfds: tfds.features.Image(encoding_format="jpeg"),
        classes=30,
    )
