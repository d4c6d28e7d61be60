"""Runs the twin of a file with the file's own inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.export.tflite.runtime import TFLiteModel, in_batches, to_floats, to_input
from gmpq_tf.export.tflite.twin.operator import read_program
from gmpq_tf.export.tflite.twin.program import ProgramLayer


class FileTwin:
    """The operators of a file, computed by TensorFlow.

    Args:
        content: the file's bytes.

    Raises:
        ExportError: the twin does not know the arithmetic of an operator.
    """

    def __init__(self, content: bytes) -> None:
        model = TFLiteModel(content)
        self.inputs, self.outputs, self.batch = model.inputs, model.outputs, model.batch
        layer = ProgramLayer(read_program(content), name="operators")
        signature = [
            tf.TensorSpec([self.batch, *detail["shape"][1:]], detail["dtype"])
            for detail in self.inputs
        ]
        self._run = tf.function(lambda arrays: layer(arrays), [signature])

    def predict(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Every output as floats, [B, ...], from arrays in the order of the inputs."""
        given = [to_input(*pair) for pair in zip(self.inputs, arrays, strict=True)]
        found = in_batches(self._run, given, self.batch)
        return [_output(*pair) for pair in zip(self.outputs, found, strict=True)]


def _output(detail: Any, values: np.ndarray) -> np.ndarray:
    return to_floats(detail, values.astype(detail["dtype"]))
