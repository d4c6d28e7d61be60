"""Sets of TFDS against what was written; a wrong name or place says what to do."""

import shlex

import numpy as np
import pytest

from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.data.spec import DatasetSpec
from gmpq_tf.data.tfds_sets import load_tfds

pytest.importorskip("tensorflow_datasets")


def images_of(batches):
    return [bytes(np.uint8(image)) for images, _ in batches for image in images]


def values_and_labels(batches):
    return [
        (float(image.numpy().mean()), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]


def numbered_config(data_dir, **options):
    options = {"scaling": "0..255", "batch_size": 8, "image_size": 16} | options
    return DataConfig("numbered_set", data_dir, **options)


def tiny_config(data_dir, **options):
    options = {"scaling": "0..255", "batch_size": 8, "validation_size": 4} | options
    return DataConfig("tiny_set", data_dir, **options)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("augment", ["none", "random_resized_crop"])
@pytest.mark.parametrize("cache", [True, False])
def test_set_without_a_row(tiny_tfds, cache, augment):
    dataset = load_dataset(tiny_config(tiny_tfds, cache=cache, augment=augment))
    assert dataset.sizes == {"train": 28, "validation": 4, "test": 8}
    assert dataset.input_shape == (4, 4, 3)
    for batches in (dataset.train(0, 2), dataset.validation(), dataset.test()):
        pairs = values_and_labels(batches)
        assert pairs and all(value == 2 * label for value, label in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["flip_crop", "random_crop", "random_resized_crop"])
def test_streamed_epochs_can_be_resumed(numbered_tfds, augment):
    dataset = load_dataset(numbered_config(numbered_tfds, augment=augment))
    resumed = list(dataset.train(2, 1).as_numpy_iterator())
    assert len(resumed) == dataset.steps_per_epoch == 2
    through = list(dataset.train(0, 3).as_numpy_iterator())[-2:]
    for (images, labels), (images2, labels2) in zip(through, resumed, strict=True):
        np.testing.assert_array_equal(labels, labels2)
        np.testing.assert_array_equal(images, images2)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("augment", ["random_crop", "random_resized_crop"])
def test_random_crops_differ_from_epoch_to_epoch(numbered_tfds, augment):
    config = numbered_config(numbered_tfds, augment=augment)
    epochs = [set(images_of(load_dataset(config).train(k, 1))) for k in (0, 1)]
    assert not epochs[0] & epochs[1]


def test_neither_cache_nor_augmentation_moves_the_validation_images(numbered_tfds):
    """Otherwise one command trains on what another holds out."""

    def held(**options):
        config = numbered_config(numbered_tfds, validation_size=7, **options)
        return images_of(load_dataset(config).validation())

    expected = held()
    assert len(expected) == 7
    assert held(cache=False) == expected
    assert held(augment="random_resized_crop") == expected
    assert held(split_seed=1) != expected


def test_unknown_name_offers_the_nearest():
    with pytest.raises(DataError, match=r"cifr10.*Nearest.*cifar10"):
        load_dataset(DataConfig("cifr10"))


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("food-101", "food101"),
        ("fgvc_aircrafts", "fgvc_aircraft"),
        ("imagenette/320", "imagenette/320px"),
        ("fgvc_aircraft/families", "fgvc_aircraft/family"),
        ("cifar10/plain", "cifar10, version 3"),
        ("cifar10:1.0.0", "cifar10, version 3"),
        ("/no/such/folder", "none"),
    ],
)
def test_wrong_name_config_or_version_offers_the_nearest(name, nearest, tmp_path):
    with pytest.raises(DataError, match=rf"{name}.*Nearest in TFDS: .*{nearest}"):
        load_dataset(DataConfig(name, str(tmp_path)))


@pytest.mark.parametrize(
    "name, first",
    [
        ("cifar10", ""),
        ("imagenette/160px", ""),
        ("fgvc_aircraft", "import gmpq_tf.data.fgvc_aircraft; "),
    ],
)
def test_set_that_is_not_on_disk_names_the_command(tmp_path, name, first):
    """What a shell makes of it is Python that fetches this set to this place."""
    with pytest.raises(DataError, match="no prepared copy") as caught:
        load_dataset(DataConfig(name, str(tmp_path)))
    message = str(caught.value)
    words = shlex.split(message[message.index("python -c") :])
    fetch = f"tfds.builder({name!r}, data_dir={str(tmp_path)!r}).download_and_prepare()"
    code = f"{first}import tensorflow_datasets as tfds; {fetch}"
    assert words[:3] == ["python", "-c", f"{code},"]  # A comma of the sentence.
    compile(code, "command", "exec")


@pytest.mark.parametrize("download", [None, True])
def test_set_to_be_fetched_by_hand_names_files_and_folder(tmp_path, download):
    config = DataConfig("imagenet2012", str(tmp_path), download=download)
    with pytest.raises(DataError) as caught:
        load_dataset(config)
    message = str(caught.value)
    assert "ILSVRC2012_img_train.tar" in message
    assert "https://image-net.org" in message
    assert str(tmp_path / "downloads" / "manual") in message
    assert "download_and_prepare()" in message


def test_folder_named_for_files_fetched_by_hand_is_where_tfds_looks(tmp_path):
    """With anything in it, TFDS no longer says that the folder is missing."""
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "other.tar").write_bytes(b"")
    config = DataConfig("imagenet2012", str(tmp_path), download=True)
    with pytest.raises(DataError) as caught:
        load_dataset(config)
    assert "does not exist or is empty" not in str(caught.value)


def test_set_of_another_kind_is_refused(shared_dir):
    config = DataConfig("voc/2012", str(shared_dir / "data" / "tfds"), image_size=64)
    spec = DatasetSpec("voc/2012", load_tfds)
    with pytest.raises(DataError, match="image classification set"):
        load_tfds(config, spec)


def test_real_photographs_are_cropped(shared_dir):
    """A set with a row's defaults is read end to end, with and without random crops."""
    data_dir = str(shared_dir / "data" / "tfds")
    config = DataConfig("nips2017_dev", data_dir, image_size=32, batch_size=8)
    images, labels = next(iter(load_dataset(config).test().take(1)))
    assert images.shape == (8, 32, 32, 3)
    assert 0.2 < float(np.mean(images)) < 0.8
    assert len(set(labels.numpy())) > 1
