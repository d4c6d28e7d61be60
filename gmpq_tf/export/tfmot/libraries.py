"""TFMOT and tf_keras, imported when first used; they know our classes from then on."""

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
    PolicyQuantizeConfig,
)
from gmpq_tf.quantizers.decay import spare_quantizers

LEGACY = "TF_USE_LEGACY_KERAS"
PACKAGE = "gmpq_tf"  # of the registered names in tf_keras files


@functools.cache
def libraries() -> SimpleNamespace:
    """`tfmot.quantization.keras` and `tf_keras`, which know our classes from now on.

    Importing TFMOT sets TF_USE_LEGACY_KERAS for this process and all it starts, and
    would turn a `tf.keras` that nobody has used yet into Keras 2.
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
    """Scope in which `tf_keras.models.load_model` knows TFMOT's classes and ours.

    Raises:
        ExportError: TFMOT or tf_keras is missing.
    """
    library = libraries()
    return library.tfmot.quantize_scope(library.ours)
