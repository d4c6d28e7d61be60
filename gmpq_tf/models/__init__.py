"""Float models to search and quantize."""

import gmpq_tf.search  # noqa: F401  so that files with our classes load
from gmpq_tf.models.builtin import MODELS, build_model
from gmpq_tf.models.files import ModelFileError, load_model
from gmpq_tf.models.foreign.files import WeightsError
from gmpq_tf.models.foreign.weights import PUBLISHED, Pretrained, build_pretrained

__all__ = [
    "MODELS",
    "PUBLISHED",
    "ModelFileError",
    "Pretrained",
    "WeightsError",
    "build_model",
    "build_pretrained",
    "load_model",
]
