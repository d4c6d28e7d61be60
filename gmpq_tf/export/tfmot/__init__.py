"""Policies as TFMOT quantize configs, and models of tf_keras that TFMOT trains."""

from gmpq_tf.export.tfmot.convert import (
    export_tflite,
    load_model,
    quantize_apply,
    quantize_configs,
    quantize_scope,
    to_student,
    to_tf_keras,
    write_tfmot,
)

__all__ = [
    "export_tflite",
    "load_model",
    "quantize_apply",
    "quantize_configs",
    "quantize_scope",
    "to_student",
    "to_tf_keras",
    "write_tfmot",
]
