"""Patches under the windows of a convolution, side by side in the channels.

A dense layer over them is the convolution, and XNNPACK computes dense layers in INT4
and INT2 as exactly as in INT8, where INT4 convolutions run in kernels that round twice.
"""

from __future__ import annotations

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
    if layer.padding == "same":
        moved.pad(
            [
                same_padding(shape[axis], output[axis], *window)
                for axis, window in zip((HEIGHT, WIDTH), windows(layer), strict=True)
            ]
        )
    height, width = windows(layer)
    moved.gather(WIDTH, output[WIDTH], *width)
    moved.gather(HEIGHT, output[HEIGHT], *height)
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


class Moved:
    """A tensor that is padded, cut and joined, always on one grid."""

    def __init__(self, net: IntegerGraph, value: Value, shape: list) -> None:
        self.net, self.value, self.shape = net, value, shape
        self.source = value.tensor

    def pad(self, amounts: list[tuple[int, int]]) -> None:
        """Pad height and width with zeros."""
        if not any(sum(pair) for pair in amounts):
            return
        shape = list(self.shape)
        for axis, pair in zip((HEIGHT, WIDTH), amounts, strict=True):
            shape[axis] += sum(pair)
        paddings = self.net.file.integers([(0, 0), *amounts, (0, 0)])
        inputs = [self.value.tensor, paddings]
        self._set(self._add("PAD", inputs, shape), shape)

    def gather(
        self, axis: int, count: int, size: int, stride: int, dilation: int
    ) -> None:
        """Put the `size` pixels under each of `count` windows side by side."""
        if size == 1 and stride == 1:
            return
        shape = list(self.shape)
        shape[axis] = count
        taps = [self._cut(axis, tap * dilation, stride, shape) for tap in range(size)]
        shape[CHANNELS] *= size
        options = schema.ConcatenationOptionsT()
        options.axis = CHANNELS
        joined = taps[0]
        if size > 1:
            joined = self._add("CONCATENATION", taps, shape, options)
        self._set(joined, shape)

    def _cut(self, axis: int, start: int, stride: int, shape: list) -> int:
        """Every `stride`-th pixel along an axis, from `start` on."""
        integers = self.net.file.integers
        begin, strides = [0] * 4, [1] * 4
        begin[axis], strides[axis] = start, stride
        if stride == 1:
            size = [-1, *shape[1:]]
            inputs = [self.value.tensor, integers(begin), integers(size)]
            return self._add("SLICE", inputs, shape)
        end = list(self.shape)
        end[0], end[axis] = 0, start + (shape[axis] - 1) * stride + 1
        inputs = [self.value.tensor, *map(integers, (begin, end, strides))]
        options = schema.StridedSliceOptionsT()
        options.beginMask = options.endMask = 1  # the whole batch
        return self._add("STRIDED_SLICE", inputs, shape, options)

    def _add(
        self, code: str, inputs: list[int], shape: list, options: Any = None
    ) -> int:
        file = self.net.file
        tensor = file.tensor(None, [None, *shape[1:]], "INT8")
        # The very same step: XNNPACK refuses to move values to another one.
        file.tensors[tensor].quantization = file.tensors[self.source].quantization
        file.operator(code, inputs, [tensor], options)
        return tensor

    def _set(self, tensor: int, shape: list) -> None:
        self.value = Value(tensor, self.value.grid, self.value.zero_point)
        self.shape = shape
