"""The registry of the twin's operators, and a Keras layer that runs them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.export.tflite.twin import moves, sums, values
from gmpq_tf.export.tflite.twin.operator import Compute, Operator, Program

# Operator -> function that returns its computation. A new operator needs a row here,
# and a case in tests/export/twin_test.py.
OPERATORS: dict[str, Callable[[Operator], Compute]] = {
    "ADD": values.add,
    "AVERAGE_POOL_2D": moves.average_pool,
    "CAST": moves.cast,
    "CONCATENATION": moves.concatenate,
    "CONV_2D": sums.conv,
    "DEPTHWISE_CONV_2D": sums.depthwise,
    "DEQUANTIZE": values.dequantize,
    "FULLY_CONNECTED": sums.dense,
    "GATHER": moves.gather,
    "LOGISTIC": values.logistic,
    "MAX_POOL_2D": moves.max_pool,
    "MIRROR_PAD": moves.mirror_pad,
    "MUL": values.multiply,
    "PAD": moves.pad,
    "QUANTIZE": values.quantize,
    "RELU": values.relu,
    "RELU6": values.relu,
    "RESHAPE": moves.reshape,
    "RESIZE_NEAREST_NEIGHBOR": moves.resize_nearest,
    "SLICE": moves.crop,
    "SOFTMAX": values.softmax,
    "SPACE_TO_DEPTH": moves.space_to_depth,
    "TRANSPOSE": moves.transpose,
    "TRANSPOSE_CONV": sums.transposed,
}
# Operators that may compute float outputs of a file.
IN_FLOAT = ("DEQUANTIZE", "LOGISTIC", "SOFTMAX")


def prepare(op: Operator) -> Compute:
    """The computation of an operator, a function of its inputs that are not constant.

    Raises:
        ExportError: the twin does not support the operator, or its options.
    """
    if op.code not in OPERATORS:
        raise op.unsupported("an operator without a row")
    if op.output.kind == "FLOAT32" and op.code not in IN_FLOAT:
        raise op.unsupported("in float, where runtimes differ in the last bits")
    return OPERATORS[op.code](op)


class ProgramLayer(keras.layers.Layer):
    """Runs the operators of a file; integers are held in float32.

    Args:
        program: operators of the file.
        tensors: numbers of the tensors to return; None: the file's outputs.
        name: name of the layer.
    """

    # Compiling hundreds of small operators takes longer than it saves.
    supports_jit = False

    def __init__(
        self, program: Program, tensors: Any = None, name: str | None = None
    ) -> None:
        super().__init__(name=name, trainable=False, dtype="float32")
        self._numbers = program.inputs
        self._wanted = tuple(program.outputs if tensors is None else tensors)
        with tf.init_scope():
            self._steps = [(op, prepare(op)) for op in program.operators]

    def call(self, arrays: list) -> list:
        """The wanted tensors, from arrays [B, ...] in the order of the inputs."""
        found = {
            number: tf.cast(array, tf.float32)
            for number, array in zip(self._numbers, arrays, strict=True)
        }
        for op, compute in self._steps:
            read = [found[t.number] for t in op.inputs if t.data is None]
            found[op.output.number] = compute(*read)
        return [found[number] for number in self._wanted]
