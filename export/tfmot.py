"""Turns a policy into TFMOT quantize configs (code: gmpq_tf/export/tfmot/)."""

from gmpq_tf.export.tfmot import (
    export_tflite,
    load_model,
    quantize_apply,
    quantize_configs,
    quantize_scope,
    to_student,
    to_tf_keras,
)

__all__ = [
    "export_tflite",
    "load_model",
    "quantize_apply",
    "quantize_configs",
    "quantize_scope",
    "to_student",
    "to_tf_keras",
]
