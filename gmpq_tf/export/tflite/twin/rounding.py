"""How XNNPACK's kernels round results to their grid.

The twin holds stored integers in float32, which represents them exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.tflite.twin.operator import Compute, Operator, Tensor

EXACT = 2**24  # float32 represents all integers up to here
ACTIVATIONS = schema.ActivationFunctionType


def limits(op: Operator) -> tuple[int, int]:
    """Smallest and largest integer of a result, with its fused activation.

    Raises:
        ExportError: the twin does not know its fused activation.
    """
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
    """The stored integer of a value: rounded, halves to even, and saturated."""
    place = np.float32(value) / tensor.step + np.float32(tensor.zero_point)
    return int(np.clip(np.rint(place), *tensor.range))


def to_nearest(value: Any, op: Operator) -> Any:
    """Rounds to the nearest integer, halves to even; adds the zero point, saturates.

    Args:
        value: float32 of any shape: a result in steps.
        op: the operator that makes it.
    """
    low, high = limits(op)
    zero = float(op.output.zero_point)
    # Clipped before rounding, so that adding the zero point is exact.
    rounded = tf.round(tf.clip_by_value(value, low - zero, high - zero))
    return rounded + zero


def fixed_point(op: Operator) -> Compute:
    """ADD in fixed point: `sum_i m_i (x_i - z_i) / 2^s`, halves rounded upwards.

    The ratios of steps are the integers `m_i` of 20 bits over `2^s`. Source:
    `xnn_init_qs8_add_minmax_params` in XNNPACK.
    """
    ratios = [np.float32(t.step / op.output.step) for t in op.inputs]
    exponent = int(np.frexp(max(ratios))[1]) - 1
    shift = 20 - exponent
    factors = [int(np.rint(np.ldexp(np.float64(r), shift))) for r in ratios]
    return shifted(op, factors, shift)


def shifted(op: Operator, factors: list[int], shift: int) -> Compute:
    """`floor(sum_i factor_i (x_i - z_i) / 2^shift + 1/2)`, plus zero point, clipped."""
    zeros = [float(t.zero_point) for t in op.inputs]
    low, high = (float(limit) for limit in limits(op))

    def compute(*values: Any) -> Any:
        # Products have at most 31 bits, so float64 is exact.
        wide = [tf.cast(v - z, tf.float64) for v, z in zip(values, zeros, strict=True)]
        total = sum(v * float(f) for v, f in zip(wide, factors, strict=True))
        result = tf.floor(total * 2.0**-shift + 0.5) + float(op.output.zero_point)
        return tf.cast(tf.clip_by_value(result, low, high), tf.float32)

    return compute
