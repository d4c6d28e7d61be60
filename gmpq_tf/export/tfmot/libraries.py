"""Imports TFMOT and tf_keras when first used, and registers our classes with them."""

from __future__ import annotations

import functools
import os
from contextlib import AbstractContextManager
from types import SimpleNamespace

import tensorflow as tf

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tfmot.fake_quantizers import (
    InputFakeQuantizer,
    KernelFakeQuantizer,
)
from gmpq_tf.export.tfmot.quantize_config import PolicyQuantizeConfig
from gmpq_tf.quantizers.decay import spare_quantizers

LEGACY = "TF_USE_LEGACY_KERAS"
PACKAGE = "gmpq_tf"  # prefix of the registered names in tf_keras files


@functools.cache
def libraries() -> SimpleNamespace:
    """`tfmot.quantization.keras` and `tf_keras`, with our classes registered.

    Importing TFMOT sets TF_USE_LEGACY_KERAS in this process and its children. If
    `tf.keras` was not used before, that would turn it into Keras 2.

    Raises:
        ExportError: TFMOT or tf_keras is missing.
    """
    before = os.environ.get(LEGACY)
    tf.keras.Model  # noqa: B018 - decides which Keras `tf.keras` is
    try:
        import tf_keras
        from tensorflow_model_optimization.python.core.quantization.keras import (
            quantize_layer,
        )
        from tensorflow_model_optimization.quantization import keras as tfmot
    except ImportError as error:
        raise ExportError(
            "TFMOT export needs tensorflow-model-optimization and tf_keras. "
            f"Received: {error}. Run pip install gmpq-tf[tfmot]."
        ) from error
    finally:
        os.environ.pop(LEGACY, None)
        if before is not None:
            os.environ[LEGACY] = before
    bases = {
        PolicyQuantizeConfig: tfmot.QuantizeConfig,
        InputFakeQuantizer: tfmot.quantizers.Quantizer,
        KernelFakeQuantizer: tfmot.quantizers.Quantizer,
    }
    for cls, base in bases.items():
        base.register(cls)
        tf_keras.utils.register_keras_serializable(PACKAGE)(cls)
    ours = {f"{PACKAGE}>{cls.__name__}": cls for cls in bases}
    spare_quantizers(tf_keras.optimizers.Optimizer)
    return SimpleNamespace(
        tf_keras=tf_keras,
        tfmot=tfmot,
        QuantizeLayer=quantize_layer.QuantizeLayer,
        ours=ours,
    )


def quantize_scope() -> AbstractContextManager:
    """Scope in which `tf_keras.models.load_model` finds TFMOT's classes and ours.

    Raises:
        ExportError: TFMOT or tf_keras is missing.
    """
    library = libraries()
    return library.tfmot.quantize_scope(library.ours)
