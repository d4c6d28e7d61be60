"""Twin operators that work on each value: ADD, MUL, QUANTIZE, activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.export.tflite.twin.operator import Compute, Operator
from gmpq_tf.export.tflite.twin.rounding import fixed_point, limits, shifted, to_nearest

# Ratios of steps that XNNPACK accepts; the runtime's built-in kernels compute the rest.
ADD_RATIOS = (2.0**-10, 2.0**8)
CONVERT_RATIOS = (2.0**-8, 2.0**7)
CONVERT_BITS = 8
ADD_SHIFT = 20


def add(op: Operator) -> Compute:
    """ADD of 8-bit integers; or of plain integers, which are positions in a table."""
    if op.output.kind == "INT32":
        starts = tf.constant(op.inputs[1].constant, tf.float32)
        return lambda value: value + starts
    ratios = [float(t.step / op.output.step) for t in op.inputs]
    if not all(ADD_RATIOS[0] <= ratio < ADD_RATIOS[1] for ratio in ratios):
        return added_in_turns(op)
    return fixed_point(op)


def added_in_turns(op: Operator) -> Compute:
    """ADD of built-in kernels: operands are rounded to a finer grid, then the sum.

    Raises:
        ExportError: the steps of the operands are too large.
    """
    steps = [float(t.step) for t in op.inputs]
    twice, target = 2 * max(steps), op.output
    tables = []
    for t, step in zip(op.inputs, steps, strict=True):
        factor, exponent = multiplier(step / twice)
        codes = range(t.range[0], t.range[1] + 1)
        moved = [(code - t.zero_point) * 2**ADD_SHIFT for code in codes]
        tables.append([_twice(value, factor, 0, -exponent) for value in moved])
    factor, exponent = multiplier(twice / (2**ADD_SHIFT * float(target.step)))
    if exponent > 0:
        raise op.unsupported(f"whose operands have {steps} steps of the result")
    low, high = (float(limit) for limit in limits(op))
    first, zero = float(op.inputs[0].range[0]), float(target.zero_point)
    scaled = [tf.constant(table, tf.int64) for table in tables]

    def compute(*values: Any) -> Any:
        places = [tf.cast(value - first, tf.int32) for value in values]
        parts = [tf.gather(*pair) for pair in zip(scaled, places, strict=True)]
        found = _twice_each(parts[0] + parts[1], factor, -exponent)
        return tf.clip_by_value(tf.cast(found, tf.float32) + zero, low, high)

    return compute


def multiply(op: Operator) -> Compute:
    """MUL: the exact integer product, one float32 multiplication, one rounding."""
    first, second = op.inputs
    factor = (first.step * second.step) / op.output.step

    def compute(one: Any, two: Any) -> Any:
        product = (one - float(first.zero_point)) * (two - float(second.zero_point))
        return to_nearest(product * factor, op)

    return compute


def quantize(op: Operator) -> Compute:
    """QUANTIZE of floats, or from one grid to another."""
    source, target = op.inputs[0], op.output
    if source.kind == "FLOAT32":
        inverse = np.float32(1) / target.step
        return lambda value: to_nearest(value * inverse, op)
    ratio = float(source.step / target.step)
    if ratio == 1:
        return shifted(op, [1], 0)
    if not CONVERT_RATIOS[0] <= ratio <= CONVERT_RATIOS[1]:
        return rounded_twice(op)
    factor = int(np.rint(np.float32(ratio) * 2**CONVERT_BITS))
    return shifted(op, [factor], CONVERT_BITS)


def rounded_twice(op: Operator) -> Compute:
    """QUANTIZE of built-in kernels, as a table: a 31-bit product, then a shift.

    Both round, as in gemmlowp.
    """
    factor, exponent = multiplier(float(op.inputs[0].step) / float(op.output.step))
    left, right = max(exponent, 0), max(-exponent, 0)
    codes = np.arange(op.inputs[0].range[0], op.inputs[0].range[1] + 1)
    table = [
        _twice(int(code) - op.inputs[0].zero_point, factor, left, right)
        for code in codes
    ]
    low, high = op.output.range
    stored_table = np.clip(np.array(table) + op.output.zero_point, low, high)
    return looked_up(stored_table, op)


def multiplier(ratio: float) -> tuple[int, int]:
    """(factor, exponent): `ratio = factor / 2^31 * 2^exponent`, factor of 31 bits."""
    fraction, exponent = np.frexp(ratio)
    factor, exponent = int(np.floor(fraction * 2**31 + 0.5)), int(exponent)
    return (factor // 2, exponent + 1) if factor == 2**31 else (factor, exponent)


def _twice(value: int, factor: int, left: int, right: int) -> int:
    """Gemmlowp's SaturatingRoundingDoublingHighMul and RoundingDivideByPOT."""
    product = (value << left) * factor
    nudge = 2**30 if product >= 0 else 1 - 2**30
    total = product + nudge
    high = total // 2**31 if total >= 0 else -(-total // 2**31)
    mask = (1 << right) - 1
    rest = high & mask
    threshold = (mask >> 1) + (high < 0)
    return (high >> right) + (rest > threshold)


def _twice_each(values: Any, factor: int, right: int) -> Any:
    """As `_twice` without a left shift, for int64 tensors of any shape."""
    product = values * factor
    down = tf.cast(product < 0, tf.int64)
    total = product + 2**30 + down * (1 - 2**31)
    high = tf.where(total >= 0, total // 2**31, -(-total // 2**31))  # towards zero
    rest = tf.bitwise.bitwise_and(high, (1 << right) - 1)
    threshold = (((1 << right) - 1) >> 1) + tf.cast(high < 0, tf.int64)
    return tf.bitwise.right_shift(high, right) + tf.cast(rest > threshold, tf.int64)


def looked_up(table: np.ndarray, op: Operator) -> Compute:
    """An operator with one input, computed by a table [256] of its results."""
    values = tf.constant(table, tf.float32)
    first = float(op.inputs[0].range[0])
    return lambda value: tf.gather(values, tf.cast(value - first, tf.int32))


def dequantize(op: Operator) -> Compute:
    """DEQUANTIZE: `(x - z) s` in float32."""
    zero, step = float(op.inputs[0].zero_point), op.inputs[0].step
    return lambda value: (value - zero) * step


def relu(op: Operator) -> Compute:
    """RELU and RELU6 that are not fused; their result has the grid of their input."""
    low, high = op.output.zero_point, op.output.range[1]
    if op.code == "RELU6":  # 6 is rounded, halves upwards, before adding the zero point
        six = int(np.floor(np.float32(6) / op.output.step + np.float32(0.5)))
        high = min(low + six, high)
    return lambda value: tf.clip_by_value(value, float(low), float(high))


def logistic(op: Operator) -> Compute:
    """LOGISTIC of floats; of integers as a table, rounded to even."""
    source, target = op.inputs[0], op.output
    if source.kind == "FLOAT32":
        return tf.sigmoid
    low, high = source.range
    codes: np.ndarray = np.arange(low, high + 1) - source.zero_point
    read = (codes.astype(np.float32) * source.step).astype(np.float64)
    found = np.rint(1 / (1 + np.exp(-read)) / target.step) + target.zero_point
    return looked_up(np.clip(found, *target.range), op)


def softmax(op: Operator) -> Compute:
    """SOFTMAX of floats, or of integers as a sum of table entries."""
    source, target = op.inputs[0], op.output
    if source.kind == "FLOAT32":
        return tf.nn.softmax
    distances: np.ndarray = np.arange(256, dtype=np.float32)
    scale = np.float32(-source.step) * np.float32(op.options.beta)
    table = tf.constant(np.exp(scale * distances), tf.float32)
    low, high = (float(limit) for limit in target.range)

    def compute(value: Any) -> Any:
        below = tf.reduce_max(value, -1, keepdims=True) - value
        shares = tf.gather(table, tf.cast(below, tf.int32))
        total = tf.reduce_sum(shares, -1, keepdims=True) * target.step
        place = tf.floor(shares * (1 / total) + 0.5) + float(target.zero_point)
        return tf.clip_by_value(place, low, high)

    return compute
