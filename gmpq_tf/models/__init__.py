"""Float models to search and quantize."""

from gmpq_tf.models.registry import MODELS, ModelFileError, build_model, load_model

__all__ = ["MODELS", "ModelFileError", "build_model", "load_model"]
