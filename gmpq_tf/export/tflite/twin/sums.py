"""Twin operators for convolutions and dense layers.

XNNPACK computes `clip(round(float32(sum) * m) + z)`: the exact sum of integer products
and bias, in 32 bits; one product with the float32 multiplier m = s_x s_w / s_y; one
rounding. Kernels below have the layout of the file, and are transposed for TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.tflite.patches import same_padding
from gmpq_tf.export.tflite.twin.operator import Compute, Operator
from gmpq_tf.export.tflite.twin.rounding import EXACT, to_nearest

ACCUMULATOR = 2**31
Linear = Callable[[Any, Any], Any]


def conv(op: Operator) -> Compute:
    """CONV_2D; its kernel is [filters, height, width, channels of a group]."""
    kernel = np.transpose(op.inputs[1].constant, (1, 2, 3, 0))
    pads, strides, dilation = window(op, kernel.shape[:2])

    def linear(x: Any, kernel: Any) -> Any:
        return tf.nn.conv2d(tf.pad(x, pads), kernel, strides, "VALID", None, dilation)

    return requantized(op, kernel, linear)


def depthwise(op: Operator) -> Compute:
    """DEPTHWISE_CONV_2D; its kernel is [1, height, width, channels * multiplier]."""
    _, height, width, outputs = op.inputs[1].shape
    channels = op.inputs[0].shape[3]
    kernel = op.inputs[1].constant.reshape(height, width, channels, outputs // channels)
    pads, strides, dilation = window(op, (height, width))

    def linear(x: Any, kernel: Any) -> Any:
        return depthwise_sum(tf.pad(x, pads), kernel, strides, dilation)

    return requantized(op, kernel, linear)


def depthwise_sum(x: Any, kernel: Any, strides: list, dilation: list) -> Any:
    """`tf.nn.depthwise_conv2d` without padding, also for unequal strides."""
    down, right = strides
    step = down if down == right else 1
    found = tf.nn.depthwise_conv2d(
        x, kernel, [1, step, step, 1], "VALID", None, dilation
    )
    return found if down == right else found[:, ::down, ::right]


def dense(op: Operator) -> Compute:
    """FULLY_CONNECTED; its kernel is [outputs, inputs]."""
    kernel = op.inputs[1].constant.T
    shape = [-1, *op.output.shape[1:]]

    def linear(x: Any, kernel: Any) -> Any:
        return tf.reshape(tf.reshape(x, [-1, kernel.shape[0]]) @ kernel, shape)

    return requantized(op, kernel, linear)


def transposed(op: Operator) -> Compute:
    """TRANSPOSE_CONV; its kernel is [filters, height, width, channels]."""
    kernel = np.transpose(op.inputs[1].constant, (1, 2, 0, 3))
    padding = "SAME" if op.options.padding == schema.Padding.SAME else "VALID"
    strides = [op.options.strideH, op.options.strideW]

    def linear(x: Any, kernel: Any) -> Any:
        shape = [tf.shape(x)[0], *op.output.shape[1:]]
        return tf.nn.conv2d_transpose(x, kernel, shape, strides, padding)

    return requantized(op, kernel, linear, source=2)


def requantized(
    op: Operator, kernel: np.ndarray, linear: Linear, source: int = 0
) -> Compute:
    """A linear operator followed by requantization to the grid of its result.

    Sums are exact in float32 if none can reach 2^24; else float64 is used. They are
    still rounded to integers, because some devices convolve by (inexact) transforms.

    Args:
        op: the operator; its kernel is operand 1, its bias the last.
        kernel: integers of the shape that `linear` takes.
        linear: (x, kernel) -> sums, float tensors.
        source: index of the operand that is computed.
    """
    x, bias = op.inputs[source], op.inputs[-1]
    scale = op.inputs[1].scale
    # In float32 and in this order, as XNNPACK computes it.
    multiplier = (x.step * scale) / op.output.step
    wide = largest_sum(op, x.zero_point, bias.constant) >= EXACT
    kind = tf.float64 if wide else tf.float32
    codes = tf.constant(kernel.astype(kind.as_numpy_dtype))
    offsets = tf.constant(bias.constant.astype(kind.as_numpy_dtype))
    factors = tf.constant(multiplier, tf.float32)
    zero = float(x.zero_point)

    def compute(value: Any) -> Any:
        sums = linear(tf.cast(value - zero, kind), codes) + offsets
        return to_nearest(tf.cast(tf.round(sums), tf.float32) * factors, op)

    return compute


def largest_sum(op: Operator, zero_point: int, bias: np.ndarray) -> int:
    """Upper bound of the magnitude of all sums and partial sums.

    Args:
        op: the operator; its kernel is operand 1.
        zero_point: zero point of its input.
        bias: integers, [channels].

    Raises:
        ExportError: the bound exceeds the 32 bits of an accumulator.
    """
    weights = np.abs(op.inputs[1].constant.astype(np.int64))
    channel = 3 if op.code == "DEPTHWISE_CONV_2D" else 0
    axes = tuple(i for i in range(weights.ndim) if i != channel)
    furthest = max(127 - zero_point, 128 + zero_point)
    bound = int(np.max(weights.sum(axes) * furthest + np.abs(bias.astype(np.int64))))
    if bound >= ACCUMULATOR:
        raise op.unsupported(f"whose sums may reach {bound}, beyond 32 bits")
    return bound


def window(op: Operator, size: tuple[int, ...]) -> tuple[list, list, list]:
    """Padding of every axis, strides and dilation of an operator's window."""
    options = op.options
    strides = [options.strideH, options.strideW]
    dilation = [
        getattr(options, "dilationHFactor", 1),
        getattr(options, "dilationWFactor", 1),
    ]
    pads = [(0, 0), (0, 0)]
    if options.padding == schema.Padding.SAME:
        parts = (op.inputs[0].shape[1:3], op.output.shape[1:3], size, strides, dilation)
        pads = [same_padding(*part) for part in zip(*parts, strict=True)]
    return [(0, 0), *pads, (0, 0)], strides, dilation
