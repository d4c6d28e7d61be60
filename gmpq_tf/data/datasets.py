"""The registry of data sets; other TFDS sets and folders need no row here."""

import dataclasses
from pathlib import Path
from typing import Any

from gmpq_tf.data.coco_json import is_coco, load_coco_json
from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.digits import load_digits
from gmpq_tf.data.folder import expanded, load_folder
from gmpq_tf.data.masks import is_masks, load_masks
from gmpq_tf.data.object_crops import crops_of
from gmpq_tf.data.spec import DatasetSpec
from gmpq_tf.data.tensor_files import is_tensors, load_tensors
from gmpq_tf.data.tfds_objects import load_tfds_objects
from gmpq_tf.data.tfds_sets import load_tfds
from gmpq_tf.data.voc_folder import is_voc_folder, load_voc_folder


def _photographs(name: str, num_classes: int, **options: Any) -> DatasetSpec:
    """Returns the row of a TFDS set of photographs, prepared as ImageNet usually is.

    For evaluation this equals resizing the shorter side to 256 pixels and cutting the
    middle 224 x 224.
    """
    usual: dict[str, Any] = {
        "image_size": 224,
        "augment": "random_resized_crop",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_fraction": 0.875,
    }
    return DatasetSpec(name, load_tfds, num_classes, **usual | options)


_BOXES: dict[str, Any] = {"holds": "boxes", "augment": "ssd"}
_TENSORS: dict[str, Any] = {"holds": "tensors", "augment": "none"}
_ROWS = (
    DatasetSpec(
        "cifar10",
        load_tfds,
        num_classes=10,
        image_size=32,
        validation_size=5000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    DatasetSpec(
        "cifar100",
        load_tfds,
        num_classes=100,
        image_size=32,
        validation_size=5000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    # Section 4.1: random 224 x 224 regions of images whose shorter side is 256.
    _photographs("imagenet2012", 1000, validation_size=10_000, augment="random_crop"),
    _photographs("imagenette", 10),
    _photographs("cars196", 196),
    _photographs("oxford_flowers102", 102),
    _photographs("oxford_iiit_pet", 37),
    _photographs("food101", 101),
    # Section 4.2: 512 x 512. The banner names the photographer (fgvc_aircraft.py).
    _photographs("fgvc_aircraft", 100, image_size=512, banner=20),
    DatasetSpec(
        "digits",
        load_digits,
        num_classes=10,
        image_size=8,
        validation_size=0.2,
        augment="shift",
    ),
    DatasetSpec("folder", load_folder, any_size=True),
    DatasetSpec("voc0712", load_tfds_objects, 20, **_BOXES, image_size=300),
    DatasetSpec("voc", load_tfds_objects, 20, **_BOXES, image_size=300),
    DatasetSpec("coco", load_tfds_objects, 80, **_BOXES, image_size=300),
    DatasetSpec("voc_folder", load_voc_folder, **_BOXES, any_size=True),
    DatasetSpec("coco_json", load_coco_json, **_BOXES, any_size=True),
    DatasetSpec("tensors", load_tensors, **_TENSORS),
    DatasetSpec("masks", load_masks, **_TENSORS, any_size=True),
)
DATASETS: dict[str, DatasetSpec] = {row.name: row for row in _ROWS}


def find_spec(name: str) -> DatasetSpec:
    """Returns the row of a data set.

    Args:
        name: A name in `DATASETS`, the path of a folder or of a COCO file, or a TFDS
            name. A row also serves every config and version of its set, such as
            `"imagenette/160px"`.

    Returns:
        The row; for a folder or another TFDS set one with general defaults.
    """
    if name in DATASETS:
        return DATASETS[name]
    if (path := expanded(name)).is_dir() or is_coco(path) or is_tensors(path):
        return dataclasses.replace(DATASETS[_kind_of(path)], name=name)
    row = DATASETS.get(name.replace(":", "/").split("/")[0])
    if row is not None and row.source in (load_tfds, load_tfds_objects):
        return dataclasses.replace(row, name=name, num_classes=None)
    return DatasetSpec(name, load_tfds)


def spec_of(config: DataConfig) -> DatasetSpec:
    """`find_spec` of a configuration, which may ask for objects as images.

    Raises:
        DataError: it does, and the data set has no boxes.
    """
    spec = find_spec(config.dataset)
    return crops_of(spec) if config.labels == "crops" else spec


def _kind_of(path: Path) -> str:
    """Returns the name of the row that reads a folder or an annotation file."""
    if is_coco(path):
        return "coco_json"
    if is_tensors(path):
        return "tensors"
    if is_masks(path):
        return "masks"
    return "voc_folder" if is_voc_folder(path) else "folder"


def with_defaults(config: DataConfig, spec: DatasetSpec) -> DataConfig:
    """Fills in fields that are None with the defaults of the data set.

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
