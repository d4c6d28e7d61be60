"""TFLite files that compute what the Keras model computes."""

from __future__ import annotations

from typing import Any

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.exporter import ExportReport, export_tflite
from gmpq_tf.export.tflite.flatbuffer import read_metadata
from gmpq_tf.export.tflite.outputs import OutputReport
from gmpq_tf.export.tflite.region_detector import RegionDetector
from gmpq_tf.export.tflite.twin import integer_twin
from gmpq_tf.export.tflite.verify import LayerReport

__all__ = [
    "ExportError",
    "ExportReport",
    "LayerReport",
    "OutputReport",
    "RegionDetector",
    "export_tflite",
    "integer_twin",
    "read_metadata",
]


def __getattr__(name: str) -> Any:
    if name in ("ExportConfig", "export", "main", "run"):  # where they were once
        from gmpq_tf.export import command

        return getattr(command, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
