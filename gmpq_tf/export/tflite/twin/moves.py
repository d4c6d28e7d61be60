"""Twin operators that move values, and pools.

Each function here takes an operator of the file, and returns a function that computes
it on float32 tensors which hold the stored integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.tflite.twin.operator import Compute, Operator
from gmpq_tf.export.tflite.twin.sums import depthwise_sum, window


def reshape(op: Operator) -> Compute:
    """RESHAPE to [B, ...]; the batch follows from the other sizes."""
    shape = [-1, *op.output.shape[1:]]
    return lambda value: tf.reshape(value, shape)


def transpose(op: Operator) -> Compute:
    """TRANSPOSE by a constant order of axes."""
    order = op.inputs[1].constant.tolist()
    return lambda value: tf.transpose(value, order)


def pad(op: Operator) -> Compute:
    """PAD with the zero point, the stored integer of the value 0."""
    pads, zero = op.inputs[1].constant.tolist(), float(op.inputs[0].zero_point)
    return lambda value: tf.pad(value, pads, constant_values=zero)


def mirror_pad(op: Operator) -> Compute:
    """MIRROR_PAD, in the mode SYMMETRIC (with the edge) or REFLECT (without)."""
    symmetric = op.options.mode == schema.MirrorPadMode.SYMMETRIC
    pads, mode = op.inputs[1].constant.tolist(), "SYMMETRIC" if symmetric else "REFLECT"
    return lambda value: tf.pad(value, pads, mode)


def crop(op: Operator) -> Compute:
    """SLICE of all axes but the batch, which is kept whole."""
    starts = op.inputs[1].constant.tolist()
    sizes = [-1, *op.output.shape[1:]]
    return lambda value: tf.slice(value, starts, sizes)


def gather(op: Operator) -> Compute:
    """GATHER: constant positions along an axis, or computed positions in a table."""
    axis = getattr(op.options, "axis", 0)
    if op.inputs[0].data is not None:
        table = tf.constant(op.inputs[0].constant, tf.float32)
        return lambda places: tf.gather(table, tf.cast(places, tf.int32))
    places = tf.constant(op.inputs[1].constant)
    return lambda value: tf.gather(value, places, axis=axis)


def cast(op: Operator) -> Compute:
    """CAST: the integers stay what they are."""
    return lambda value: value


def space_to_depth(op: Operator) -> Compute:
    """SPACE_TO_DEPTH: square blocks of pixels become channels."""
    return lambda value: tf.nn.space_to_depth(value, op.options.blockSize)


def concatenate(op: Operator) -> Compute:
    """CONCATENATION of tensors on one grid.

    Raises:
        ExportError: the twin cannot compute it.
    """
    grids = {(float(t.step), t.zero_point) for t in (*op.inputs, op.output)}
    if len(grids) > 1:
        raise op.unsupported(f"whose operands are on the grids {sorted(grids)}")
    return lambda *values: tf.concat(values, op.options.axis)


def resize_nearest(op: Operator) -> Compute:
    """RESIZE_NEAREST_NEIGHBOR by whole factors: rows and columns are repeated.

    Raises:
        ExportError: the twin cannot compute it.
    """
    before, after = op.inputs[0].shape[1:3], op.output.shape[1:3]
    if any(large % small for small, large in zip(before, after, strict=True)):
        raise op.unsupported(f"from {before} to {after}")
    down, right = (large // small for small, large in zip(before, after, strict=True))
    return lambda value: tf.repeat(tf.repeat(value, down, 1), right, 2)


def max_pool(op: Operator) -> Compute:
    """MAX_POOL_2D, padded with the smallest integer, which is never the maximum."""
    size = (op.options.filterHeight, op.options.filterWidth)
    pads, strides, _ = window(op, size)

    def compute(value: Any) -> Any:
        padded = tf.pad(value, pads, constant_values=float(op.output.range[0]))
        return tf.nn.max_pool2d(padded, size, strides, "VALID")

    return compute


def average_pool(op: Operator) -> Compute:
    """AVERAGE_POOL_2D of unsigned integers: the mean, halves rounded upwards.

    Raises:
        ExportError: the twin cannot compute it.
    """
    if op.output.kind != "UINT8":
        raise op.unsupported(f"of {op.output.kind}")
    size = (op.options.filterHeight, op.options.filterWidth)
    pads, strides, _ = window(op, size)
    channels = op.output.shape[3]
    ones = tf.ones((*size, channels, 1))
    image: np.ndarray = np.ones((1, *op.inputs[0].shape[1:]), np.float32)
    counts = depthwise_sum(tf.pad(image, pads), ones, strides, [1, 1])

    def compute(value: Any) -> Any:
        sums = depthwise_sum(tf.pad(value, pads), ones, strides, [1, 1])
        return tf.floor((2 * tf.round(sums) + counts) / (2 * counts))

    return compute
