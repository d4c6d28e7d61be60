"""Patches under the windows of a convolution, side by side in the channels.

A dense layer over them is the convolution, and XNNPACK computes dense layers in INT4
and INT2 as exactly as in INT8, where INT4 convolutions run in kernels that round twice.
"""

from __future__ import annotations

import math
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from .grids import Value
from .integer_graph import IntegerGraph

HEIGHT, WIDTH, CHANNELS = 1, 2, 3


def lower_patches(
    net: IntegerGraph, source: Value, shape: tuple, output: tuple, layer: Any
) -> Value:
    """Add the operators that lay out a tensor for a convolution without groups.

    First neighbours in a row are put side by side, then rows: the channels of the
    result run as the kernel's [height, width, channels] do.

    Args:
        net: the file being written.
        source: [batch, height, width, channels], on a grid.
        shape: its shape.
        output: shape of the convolution's result.
        layer: the convolution: kernel size, strides, dilation and padding.

    Returns:
        [batch, output height, output width, kernel height * width * channels].
    """
    moved = Moved(net, source, list(shape))
    axes = list(zip((HEIGHT, WIDTH), windows(layer), strict=True))
    same = layer.padding == "same"
    moved.pad([padding(shape[a], output[a], *window, same) for a, window in axes])
    for axis, window in reversed(axes):
        moved.gather(axis, output[axis], *window)
    return moved.value


def windows(layer: Any) -> list[tuple[int, int, int]]:
    """(size, stride, dilation) of a convolution's window along height and width."""
    parts = (layer.kernel_size, layer.strides, layer.dilation_rate)
    return list(zip(*parts, strict=True))


def same_padding(
    size: int, output: int, window: int, stride: int, dilation: int
) -> tuple[int, int]:
    """Zeros before and after, as TensorFlow's "SAME" adds them."""
    reach = (output - 1) * stride + (window - 1) * dilation + 1
    total = max(reach - size, 0)
    return total // 2, total - total // 2


def padding(
    size: int, output: int, window: int, stride: int, dilation: int, same: bool
) -> tuple[int, int]:
    """Zeros before and after, so that an axis also divides into strides."""
    before, after = 0, 0
    if same:
        before, after = same_padding(size, output, window, stride, dilation)
    padded = before + size + after
    read = stride * ((window - 1) * dilation // stride + output)
    whole = max(stride * math.ceil(padded / stride), read)
    return before, after + (whole - padded if stride > 1 else 0)


class Moved:
    """A tensor that is padded, cut and joined, always on one grid."""

    def __init__(self, net: IntegerGraph, value: Value, shape: list) -> None:
        self.net, self.value, self.shape = net, value, shape
        self.source = value.tensor

    def pad(self, amounts: list[tuple[int, int]]) -> None:
        """Pad height and width with zeros."""
        if not any(sum(pair) for pair in amounts):
            return
        for axis, pair in zip((HEIGHT, WIDTH), amounts, strict=True):
            self.shape[axis] += sum(pair)
        self._set(self._add("PAD", [(0, 0), *amounts, (0, 0)], shape=self.shape))

    def gather(
        self, axis: int, count: int, size: int, stride: int, dilation: int
    ) -> None:
        """Put the `size` pixels under each of `count` windows side by side.

        A stride splits the axis in steps and phases, which join the axis after it:
        XNNPACK cuts without strides only, and built-in kernels cut with them value by
        value.
        """
        if size == 1 and stride == 1:
            return
        shape, inner = list(self.shape), self.shape[axis + 1]
        if stride > 1:
            self.shape[axis] //= stride
            self.shape[axis + 1] *= stride
            self._set(self._add("RESHAPE", [-1, *self.shape[1:]], shape=self.shape))
        shape[axis] = count
        taps = []
        for tap in range(size):
            step, phase = divmod(tap * dilation, stride)
            begin = [0] * 4
            begin[axis], begin[axis + 1] = step, phase * inner
            taps.append(self._add("SLICE", begin, [-1, *shape[1:]], shape=shape))
        self.shape = shape
        self._set(taps[0])
        if size > 1:
            self.shape = [*shape[:CHANNELS], shape[CHANNELS] * size]
            options = schema.ConcatenationOptionsT()
            options.axis = CHANNELS
            self._set(self._write("CONCATENATION", taps, self.shape, options))

    def _add(self, code: str, *arguments: list, shape: list) -> int:
        """An operator on the current tensor, with constant arguments."""
        constants = [self.net.file.integers(values) for values in arguments]
        return self._write(code, [self.value.tensor, *constants], shape, None)

    def _write(self, code: str, inputs: list[int], shape: list, options: Any) -> int:
        file = self.net.file
        tensor = file.tensor(None, [None, *shape[1:]], "INT8")
        # The very same step: XNNPACK refuses to move values to another one.
        file.tensors[tensor].quantization = file.tensors[self.source].quantization
        file.operator(code, inputs, [tensor], options)
        return tensor

    def _set(self, tensor: int) -> None:
        self.value = Value(tensor, self.value.grid, self.value.zero_point)
