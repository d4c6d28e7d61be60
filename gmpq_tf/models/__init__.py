"""Float models to search and quantize."""

from gmpq_tf.models.registry import MODELS, ModelFileError, build_model, load_model
from gmpq_tf.models.weight_files import WeightsError
from gmpq_tf.models.weights import PUBLISHED, Pretrained, build_pretrained

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
