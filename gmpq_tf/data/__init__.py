"""Data sets and input pipelines."""

import gmpq_tf.search  # noqa: F401  so that files with our classes load
from gmpq_tf.data.augment import AUGMENTATIONS, augment_batch
from gmpq_tf.data.checks import check_num_classes
from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.datasets import DATASETS
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.loading import load_dataset
from gmpq_tf.data.pipeline import Dataset
from gmpq_tf.data.scaling import (
    SCALING_KINDS,
    InputScaling,
    pixel_affine,
    scale_images,
)
from gmpq_tf.data.spec import DatasetSpec
from gmpq_tf.data.splits import Share

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "SCALING_KINDS",
    "DataConfig",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "InputScaling",
    "Share",
    "augment_batch",
    "check_num_classes",
    "load_dataset",
    "pixel_affine",
    "scale_images",
]
