"""Convolution as a dense layer over patches (im2col).

The pixels under each window of a convolution are laid out side by side in the channels:
[B, H', W', h w C]. A dense layer whose kernel is the flattened [h w C, filters] then is
the convolution. XNNPACK computes dense layers in INT4 and INT2 as exactly as in INT8,
while INT4 convolutions run in built-in kernels that round twice.

The operators used here (PAD, GATHER, RESHAPE, SPACE_TO_DEPTH or TRANSPOSE) only move
values, so that every tensor keeps the grid of the input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.integers.grids import Value
from gmpq_tf.export.tflite.integer_graph import IntegerGraph, constant_shape

HEIGHT, WIDTH = 1, 2


def lower_patches(
    net: IntegerGraph, source: Value, shape: tuple, output: tuple, layer: Any
) -> Value:
    """Adds the operators that lay out a tensor for a convolution without groups.

    First columns and then rows are repeated in the order in which windows read them, so
    that windows no longer overlap. Then each window is a block of h x w pixels, which
    is moved to the channels; these have the order of the kernel's [height, width,
    channels].

    Args:
        net: the file being written.
        source: tensor [batch, height, width, channels] on a grid.
        shape: its shape.
        output: shape of the convolution's result.
        layer: the convolution, for kernel size, strides, dilation and padding.

    Returns:
        [batch, output height, output width, kernel height * width * channels].
    """
    moved = Moved(net, source, list(shape))
    axes = list(zip((HEIGHT, WIDTH), windows(layer), strict=True))
    if layer.padding == "same":
        amounts = [same_padding(shape[a], output[a], *window) for a, window in axes]
        pad = moved.pad if net.storage == "smallest" else moved.pad_fast
        pad(amounts)
    for axis, window in reversed(axes):
        moved.gather(axis, read_order(output[axis], *window))
    moved.join(layer.kernel_size)
    return moved.value


def lower_past(
    net: IntegerGraph, source: Value, shape: tuple, layer: Any
) -> tuple[Value, tuple]:
    """Adds the zeros that a causal convolution reads before the first step.

    Args:
        net: the file being written.
        source: tensor [batch, 1, steps, channels] on a grid.
        shape: its shape.
        layer: the convolution, for kernel size and dilation.

    Returns:
        [batch, 1, past + steps, channels], and its shape.
    """
    (_, _, _), (size, _, dilation) = windows(layer)
    past = (size - 1) * dilation
    moved = Moved(net, source, list(shape))
    moved.pad([(0, 0), (past, 0)])
    return moved.value, (*shape[:2], past + shape[2], shape[3])


def windows(layer: Any) -> list[tuple[int, int, int]]:
    """(size, stride, dilation) of a convolution's window along height and width."""
    parts = (layer.kernel_size, layer.strides, layer.dilation_rate)
    return list(zip(*parts, strict=True))


def same_padding(
    size: int, output: int, window: int, stride: int, dilation: int
) -> tuple[int, int]:
    """Numbers of zeros before and after an axis, as TensorFlow's "SAME" pads it."""
    reach = (output - 1) * stride + (window - 1) * dilation + 1
    total = max(reach - size, 0)
    return total // 2, total - total // 2


def read_order(count: int, size: int, stride: int, dilation: int) -> np.ndarray:
    """Positions that `count` windows read, one window after another: [count * size]."""
    starts: np.ndarray = np.arange(count)[:, None] * stride
    return (starts + np.arange(size) * dilation).ravel()


class Moved:
    """A tensor whose values are moved by operators that keep its grid."""

    def __init__(self, net: IntegerGraph, value: Value, shape: list) -> None:
        self.file, self.value = net.file, value
        self.shape = [net.batch, *shape[1:]]
        self.quantization = net.file.tensors[value.tensor].quantization

    def pad(self, amounts: list[tuple[int, int]]) -> None:
        """Pads height and width with zeros."""
        if any(map(sum, amounts)):
            for axis, pair in zip((HEIGHT, WIDTH), amounts, strict=True):
                self.shape[axis] += sum(pair)
            self._add("PAD", [(0, 0), *amounts, (0, 0)])

    def pad_fast(self, amounts: list[tuple[int, int]]) -> None:
        """As `pad`, up to seven times as fast, by two more operators of 80 bytes each.

        Each row is reshaped to one long axis: the runtime copies the last axis as a
        whole, and few long copies take less time than many short ones.
        """
        rows, columns = amounts
        if not sum(columns):
            self.pad(amounts)
            return
        _, height, width, channels = self.shape
        self._view([height, width * channels])
        height, width = height + sum(rows), width + sum(columns)
        self.shape = [self.shape[0], height, width * channels]
        self._add("PAD", [(0, 0), rows, [channels * n for n in columns]])
        self._view([height, width, channels])

    def gather(self, axis: int, positions: np.ndarray) -> None:
        """Takes the values at positions, int64 [n], of an axis."""
        if np.array_equal(positions, np.arange(self.shape[axis])):
            return
        self.shape[axis] = len(positions)
        options = schema.GatherOptionsT()
        options.axis = axis
        self._add("GATHER", positions, options)

    def join(self, size: tuple[int, int]) -> None:
        """Moves the pixels of each block of `size` (height, width) to the channels."""
        height, width = size
        if height == width:
            if height > 1:  # one operator does it, but for squares alone
                self._divide(height, width)
                options = schema.SpaceToDepthOptionsT()
                options.blockSize = height
                self._add("SPACE_TO_DEPTH", None, options)
            return
        if height > 1:  # pixels of a row already lie side by side
            _, rows, columns, channels = self.shape
            # [B, rows, h, columns, w * C] -> [B, rows, columns, h, w * C]
            self._view([rows // height, height, columns // width, width * channels])
            blocks = [self.shape[i] for i in (0, 1, 3, 2, 4)]
            self.shape = blocks
            self._add("TRANSPOSE", [0, 1, 3, 2, 4])
            self._view([*blocks[1:3], height * width * channels])
            return
        self._divide(height, width)  # one row per block: nothing moves
        self._view(self.shape[1:])

    def _divide(self, height: int, width: int) -> None:
        batch, rows, columns, channels = self.shape
        self.shape = [batch, rows // height, columns // width]
        self.shape.append(height * width * channels)

    def _view(self, shape: list) -> None:
        self.shape = [self.shape[0], *shape]
        self._add("RESHAPE", constant_shape(self.shape))

    def _add(self, code: str, argument: Any, options: Any = None) -> None:
        """Applies an operator with a constant argument to the current tensor."""
        inputs = [self.value.tensor]
        if argument is not None:
            inputs.append(self.file.integers(argument))
        tensor = self.file.tensor(None, self.shape, "INT8")
        # Exactly the same quantization: XNNPACK's operators here cannot requantize.
        self.file.tensors[tensor].quantization = self.quantization
        self.file.operator(code, inputs, [tensor], options)
        self.value = Value(tensor, self.value.grid, self.value.zero_point)
