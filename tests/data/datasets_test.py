"""Every row against what TFDS says of its set, without a network."""

import pytest

from gmpq_tf.data import DATASETS, DataConfig
from gmpq_tf.data.augment import AUGMENTATIONS
from gmpq_tf.data.datasets import find_spec, with_defaults
from gmpq_tf.data.tfds_sets import load_tfds, make_builder

FROM_TFDS = [name for name, row in DATASETS.items() if row.source is load_tfds]
PHOTOGRAPHS = [name for name in FROM_TFDS if not name.startswith("cifar")]


@pytest.fixture
def builder_of(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    return lambda name: make_builder(DataConfig(name, str(tmp_path)), name)


@pytest.mark.parametrize("name", DATASETS)
def test_rows_stand_under_their_names(name):
    assert find_spec(name).name == name


@pytest.mark.parametrize("name", DATASETS)
def test_rows_are_complete(name):
    row = DATASETS[name]
    assert row.augment in AUGMENTATIONS
    assert row.validation_size > 0
    assert 0 < row.crop_fraction <= 1
    if name in FROM_TFDS:
        assert len(row.mean) == len(row.std) == 3
        config = with_defaults(DataConfig(name, scaling="mean_std"), row)
        assert config.input_scaling().kind == "mean_std"


@pytest.mark.parametrize("name", FROM_TFDS)
def test_tfds_knows_the_set_and_its_classes(name, builder_of):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder, row = builder_of(name), DATASETS[name]
    assert name in tfds.list_builders(with_community_datasets=False)
    assert builder.name == name
    assert {"image", "label"} <= set(builder.info.features)
    if name != "fgvc_aircraft":  # Its archive names the classes.
        assert builder.info.features["label"].num_classes == row.num_classes
    shape = tuple(builder.info.features["image"].shape)
    assert shape in {(row.image_size, row.image_size, 3), (None, None, 3)}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_evaluated_as_imagenet_is(name):
    """224 of 256 pixels, and the mean and deviation that TorchVision publishes."""
    row = DATASETS[name]
    assert row.crop_fraction * 256 == 224
    assert row.mean == (0.485, 0.456, 0.406) and row.std == (0.229, 0.224, 0.225)
    assert row.image_size == (512 if name == "fgvc_aircraft" else 224)
    assert AUGMENTATIONS[row.augment].crop is not None
    assert AUGMENTATIONS[row.augment].flip


def test_the_papers_sets_have_rows():
    """Section 4.1: CIFAR-10, Cars, Flowers, Aircraft, Pets and Food; ImageNet."""
    classes = {
        "cifar10": 10,
        "cars196": 196,
        "oxford_flowers102": 102,
        "fgvc_aircraft": 100,
        "oxford_iiit_pet": 37,
        "food101": 101,
        "imagenet2012": 1000,
    }
    assert {name: DATASETS[name].num_classes for name in classes} == classes


@pytest.mark.parametrize("name", ["imagenette/160px", "imagenette:1.0.0"])
def test_a_row_counts_for_configs_and_versions(name):
    spec = find_spec(name)
    assert spec.name == name
    assert spec.crop_fraction == DATASETS["imagenette"].crop_fraction


def test_defaults_come_from_the_row():
    config = with_defaults(DataConfig(scaling="mean_std"), DATASETS["cifar10"])
    assert config.augment == "flip_crop"
    assert config.validation_size == 5000
    assert config.mean == DATASETS["cifar10"].mean
    given = DataConfig(validation_size=7, augment="none")
    assert with_defaults(given, DATASETS["cifar10"]) == given
