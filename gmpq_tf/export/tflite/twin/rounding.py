"""How kernels of XNNPACK bring numbers to the grid of a result.

Stored integers are held in float32, where they are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.tflite.twin.operator import Compute, Operator, Tensor

EXACT = 2**24  # integers up to here are float32 numbers
ACTIVATIONS = schema.ActivationFunctionType


def limits(op: Operator) -> tuple[int, int]:
    """Smallest and largest integer that a fused activation leaves."""
    low, high = op.output.range
    activation = getattr(op.options, "fusedActivationFunction", ACTIVATIONS.NONE)
    if activation == ACTIVATIONS.NONE:
        return low, high
    low = stored(0, op.output)
    if activation == ACTIVATIONS.RELU:
        return low, high
    if activation == ACTIVATIONS.RELU6:
        return low, stored(6, op.output)
    raise op.unsupported(f"fused activation {activation}")


def stored(value: float, tensor: Tensor) -> int:
    """The integer that stands for a value, halves to even, saturated."""
    place = np.float32(value) / tensor.step + np.float32(tensor.zero_point)
    return int(np.clip(np.rint(place), *tensor.range))


def to_nearest(value: Any, op: Operator) -> Any:
    """Round to the nearest integer, halves to even, add the zero point, saturate.

    Args:
        value: float32 of any shape: a result in steps.
        op: the operator that makes it.
    """
    low, high = limits(op)
    zero = float(op.output.zero_point)
    # Bounded before, so that the sum below is exact.
    rounded = tf.round(tf.clip_by_value(value, low - zero, high - zero))
    return rounded + zero


def fixed_point(op: Operator) -> Compute:
    """`sum of m_i (x_i - z_i) / 2^s`, halves upwards: integers `m_i` of 20 bits.

    What ADD computes; source: `xnn_init_qs8_add_minmax_params` of XNNPACK.
    """
    ratios = [np.float32(t.step / op.output.step) for t in op.inputs]
    exponent = int(np.frexp(max(ratios))[1]) - 1
    shift = 20 - exponent
    factors = [int(np.rint(np.ldexp(np.float64(r), shift))) for r in ratios]
    return shifted(op, factors, shift)


def shifted(op: Operator, factors: list[int], shift: int) -> Compute:
    """`floor(sum of factor_i (x_i - z_i) / 2^shift + 1/2)` on the result's grid."""
    zeros = [float(t.zero_point) for t in op.inputs]
    low, high = (float(limit) for limit in limits(op))

    def compute(*values: Any) -> Any:
        # Products of 31 bits: exact in float64.
        wide = [tf.cast(v - z, tf.float64) for v, z in zip(values, zeros, strict=True)]
        total = sum(v * float(f) for v, f in zip(wide, factors, strict=True))
        result = tf.floor(total * 2.0**-shift + 0.5) + float(op.output.zero_point)
        return tf.cast(tf.clip_by_value(result, low, high), tf.float32)

    return compute
