"""The data sets with a row of their own; other TFDS sets and folders need none."""

import dataclasses
from pathlib import Path
from typing import Any

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.sources import DatasetSpec, load_digits, load_folder, load_tfds

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATASETS: dict[str, DatasetSpec] = {
    "cifar10": DatasetSpec(
        "cifar10",
        load_tfds,
        tfds_name="cifar10",
        num_classes=10,
        image_size=32,
        validation_size=5000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": DatasetSpec(
        "cifar100",
        load_tfds,
        tfds_name="cifar100",
        num_classes=100,
        image_size=32,
        validation_size=5000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "imagenet2012": DatasetSpec(
        "imagenet2012",
        load_tfds,
        tfds_name="imagenet2012",
        num_classes=1000,
        image_size=224,
        validation_size=10_000,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        crop_fraction=0.875,
    ),
    "digits": DatasetSpec(
        "digits",
        load_digits,
        num_classes=10,
        image_size=8,
        validation_size=0.2,
        augment="shift",
    ),
    "folder": DatasetSpec("folder", load_folder),
}


def find_spec(name: str) -> DatasetSpec:
    """Return the row of a data set.

    Args:
        name: A name in `DATASETS`, the path of a folder, or a TFDS name.

    Returns:
        The row; for a folder or another TFDS set one with general defaults.
    """
    if name in DATASETS:
        return DATASETS[name]
    if Path(name).expanduser().is_dir():
        return dataclasses.replace(DATASETS["folder"], name=name)
    return DatasetSpec(name, load_tfds, tfds_name=name)


def with_defaults(config: DataConfig, spec: DatasetSpec) -> DataConfig:
    """Fill in what a configuration leaves to the data set.

    Args:
        config: The configuration.
        spec: The row of its data set.

    Returns:
        A configuration with augmentation, validation size and, for `"mean_std"`, mean
        and standard deviation given.
    """
    defaults: dict[str, Any] = {
        "augment": spec.augment,
        "validation_size": spec.validation_size,
    }
    if config.scaling == "mean_std":
        defaults |= {"mean": spec.mean, "std": spec.std}
    missing = {k: v for k, v in defaults.items() if getattr(config, k) is None}
    return dataclasses.replace(config, **missing)
