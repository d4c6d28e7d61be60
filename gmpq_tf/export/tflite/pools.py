"""Pooling layers as TFLite operators."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.fold import AVERAGE_CODE
from gmpq_tf.export.integers.grids import Grid, Value, quantization
from gmpq_tf.export.tflite.convolutions import LARGEST_RATIO, SAME, VALID, add_depthwise
from gmpq_tf.export.tflite.flatbuffer import Quantization
from gmpq_tf.export.tflite.integer_graph import (
    Check,
    IntegerGraph,
    beyond_kernels,
    constant_shape,
)
from gmpq_tf.export.tflite.shapes import (
    concatenate,
    flat,
    lower_reshape,
    on_one_grid,
    view,
)
from gmpq_tf.graph import Call


def lower_max_pool(net: IntegerGraph, call: Call) -> None:
    """Writes MaxPooling2D; a global one has a window as large as the image."""
    layer = call.layer
    options = schema.Pool2DOptionsT()
    if not hasattr(layer, "pool_size"):
        size = stride = tuple(net.graph.shapes[call.inputs[0]][1:3])
        options.padding = VALID
    else:
        size, stride = layer.pool_size, layer.strides
        options.padding = SAME if layer.padding == "same" else VALID
    options.filterHeight, options.filterWidth = size
    options.strideH, options.strideW = stride
    if len(net.graph.shapes[call.outputs[0]]) == 4:
        return view(net, call, "MAX_POOL_2D", [], options)
    flat(net, call, lambda inner: view(net, inner, "MAX_POOL_2D", [], options))


def lower_average(net: IntegerGraph, call: Call) -> None:
    """Writes average pooling, exactly, as a depthwise convolution or a dense layer.

    TFLite's MEAN and AVERAGE_POOL_2D round halves away from zero, and MEAN rounds the
    zero point separately: 2 to 19 % of their codes are one step off. Here all kernel
    codes are 7, and the kernel step is 1 / (7 n) for n pixels. If the steps of input
    and output nest, results may lie exactly midway between two codes; then a bias of
    one accumulator unit (1/7 of the distance to the next value) makes them round
    upwards.
    """
    shape = net.graph.shapes[call.inputs[0]]
    size, stride = average_window(call, shape)
    if not covers_only_image(call, shape, size, stride):
        return lower_padded_average(net, call)
    grid = net.next_grid(call.outputs[0], call.name)
    if tuple(size) == tuple(shape[1:3]):
        return add_mean(net, call, math.prod(size), grid)
    add_average(net, call, size, stride, grid)


def average_window(call: Call, shape: tuple) -> tuple[tuple, tuple]:
    """Size and stride of an average pool; a global one covers the image."""
    if not hasattr(call.layer, "pool_size"):
        return tuple(shape[1:3]), tuple(shape[1:3])
    return tuple(call.layer.pool_size), tuple(call.layer.strides)


def covers_only_image(call: Call, shape: tuple, size: tuple, stride: tuple) -> bool:
    """Whether no window reaches into padding, which Keras leaves out of the mean."""
    if getattr(call.layer, "padding", "valid") == "valid":
        return True
    steps = [math.ceil(n / s) - 1 for n, s in zip(shape[1:3], stride, strict=True)]
    ends = [t * s + k for t, s, k in zip(steps, stride, size, strict=True)]
    return all(end <= n for end, n in zip(ends, shape[1:3], strict=True))


def add_mean(net: IntegerGraph, call: Call, pixels: int, grid: Grid) -> None:
    """Writes the mean of whole images: channels first, then a dense layer of 1 output.

    Its kernel has one code per pixel; a depthwise one has one per pixel and channel.

    Raises:
        ExportError: the results are too small for 32-bit sums.
    """
    source, index = net.input(call), call.outputs[0]
    assert source.grid is not None
    file, channels = net.file, net.graph.shapes[call.inputs[0]][3]
    meaning = file.tensors[source.tensor].quantization
    shape = net.shape(call.inputs[0], call.name)

    def moved(code: str, tensor: int, argument: list, shape: list) -> int:
        result = file.tensor(None, shape, "INT8")
        file.tensors[result].quantization = meaning
        file.operator(code, [tensor, file.integers(argument)], [result])
        return result

    first = moved(
        "TRANSPOSE", source.tensor, [0, 3, 1, 2], [net.batch, channels, *shape[1:3]]
    )
    flattened = [net.rows(channels), pixels]
    rows = moved("RESHAPE", first, constant_shape(flattened), flattened)
    scale = np.full(1, 1 / (AVERAGE_CODE * pixels))
    codes: np.ndarray = np.full((1, pixels), AVERAGE_CODE, np.int8)
    kernel = file.constant(f"{call.name}_kernel", codes, Quantization(tuple(scale)))
    ratio = float(scale[0]) * source.grid.step / grid.step
    if ratio >= LARGEST_RATIO:
        raise ExportError(beyond_kernels(call.name, ratio))
    nested = math.log2(grid.step / source.grid.step).is_integer()
    unit = Quantization(tuple(scale * source.grid.step))
    bias = file.constant(None, np.full(1, int(nested), np.int32), unit)
    means = file.tensor(None, [net.rows(channels), 1], "INT8", quantization(grid))
    file.operator(
        "FULLY_CONNECTED",
        [rows, kernel, bias],
        [means],
        schema.FullyConnectedOptionsT(),
    )
    final = net.shape(index, call.name)
    tensor = file.tensor(call.name, final, "INT8", quantization(grid))
    shape_operand = file.integers(constant_shape(final))
    file.operator("RESHAPE", [means, shape_operand], [tensor])
    value = Value(tensor, grid, grid.zero_point)
    if source.grid.low < 0 or grid.low > 0:
        value = net.clamp_below(value, final, call.name)
    net.values[index] = value
    net.checks.append(Check(call.name, call.kind, index, value, ratio / 2))


def add_average(
    net: IntegerGraph, call: Call, size: tuple, stride: tuple, grid: Grid
) -> None:
    """Writes the depthwise convolution of `lower_average`."""
    source, channels = net.input(call), net.graph.shapes[call.inputs[0]][3]
    assert source.grid is not None
    scale = np.full(channels, 1 / (AVERAGE_CODE * math.prod(size)))
    codes = np.full((1, *size, channels), AVERAGE_CODE, np.int8)
    options = schema.DepthwiseConv2DOptionsT()
    options.padding, options.depthMultiplier = VALID, 1
    options.strideH, options.strideW = stride
    nested = math.log2(grid.step / source.grid.step).is_integer()
    bias = np.full(channels, int(nested), np.int32)
    add_depthwise(net, call, codes, scale, bias, grid, options)


def lower_mean(net: IntegerGraph, call: Call) -> None:
    """Writes the average of tensors: stack their rows, then apply an average pool.

    One operator then adds all of them, so that it rounds only once.
    """
    batch, *inner, channels = net.graph.shapes[call.outputs[0]]
    first, tensors = on_one_grid(net, call)
    assert first.grid is not None
    many, pixels = len(tensors), math.prod(inner)
    meaning = quantization(first.grid, first.zero_point)
    one: list[int | None] = [net.batch, 1, pixels, channels]
    rows = [net.file.tensor(None, one, "INT8", meaning) for _ in tensors]
    for tensor, row in zip(tensors, rows, strict=True):
        shape = net.file.integers(constant_shape(one))
        net.file.operator("RESHAPE", [tensor, shape], [row])
    stack = net.graph.new_tensor((batch, many, pixels, channels), "float32")
    all_rows: list[int | None] = [net.batch, many, pixels, channels]
    net.values[stack] = concatenate(
        net, f"{call.name}_operands", first, rows, all_rows, 1
    )
    middle = net.graph.new_tensor((batch, 1, pixels, channels), "float32")
    sums = Call(call.layer, call.name, (), {}, (stack,), (middle,))
    net.producers[middle], net.consumers[middle] = sums, []
    net.stands_for[middle] = call.outputs[0]
    add_average(net, sums, (many, 1), (1, 1), net.next_grid(call.outputs[0], call.name))
    flat_call = Call(call.layer, f"{call.name}_flat", (), {}, (middle,), call.outputs)
    lower_reshape(net, flat_call)


def lower_bilinear(net: IntegerGraph, call: Call) -> None:
    """Writes bilinear UpSampling2D by powers of two: repeat, mirror the edges, average.

    RESIZE_BILINEAR rounds halves upwards in XNNPACK, and differently in the built-in
    and reference kernels (measured with LiteRT 2.3). Instead pixels are repeated f
    times, and a depthwise convolution with the window `1 2 ... 2 1` of f + 1 pixels
    weighs both neighbours. Kernel codes are even, so a bias of one unit makes halves
    round upwards, and changes no other result.
    """
    source, index, sizes = net.input(call), call.outputs[0], call.layer.size
    assert source.grid is not None
    grid, (batch, *_) = net.next_grid(index, call.name), net.graph.shapes[index]
    meaning = quantization(source.grid, source.zero_point)
    rank = net.shape(index, call.name)
    repeated = net.file.tensor(f"{call.name}_repeated", rank, "INT8", meaning)
    net.file.operator(
        "RESIZE_NEAREST_NEIGHBOR",
        [source.tensor, net.file.integers(rank[1:3])],
        [repeated],
        schema.ResizeNearestNeighborOptionsT(),
    )
    pads = [size // 2 for size in sizes]
    image = [n + 2 * p for n, p in zip(net.graph.shapes[index][1:3], pads, strict=True)]
    channels = net.graph.shapes[index][3]
    wide = net.graph.new_tensor((batch, *image, channels), "float32")
    shape = net.shape(wide, call.name)
    mirrored = net.file.tensor(f"{call.name}_mirrored", shape, "INT8", meaning)
    options = schema.MirrorPadOptionsT()
    options.mode = schema.MirrorPadMode.SYMMETRIC
    paddings = net.file.integers([(0, 0), *((p, p) for p in pads), (0, 0)])
    net.file.operator("MIRROR_PAD", [repeated, paddings], [mirrored], options)
    net.values[wide] = Value(mirrored, source.grid, source.zero_point)
    down, right = (np.array([1, *[2] * (s - 1), 1] if s > 1 else [2]) for s in sizes)
    window: np.ndarray = 2 * np.outer(down, right)
    scale = np.full(channels, 1 / window.sum())
    codes = np.repeat(window[None, :, :, None], channels, -1).astype(np.int8)
    pooling = schema.DepthwiseConv2DOptionsT()
    pooling.padding, pooling.depthMultiplier = VALID, 1
    pooling.strideH = pooling.strideW = 1
    nested = math.log2(grid.step / source.grid.step).is_integer()
    bias = np.full(channels, int(nested), np.int32)
    inner = replace(call, inputs=(wide,))
    add_depthwise(net, inner, codes, scale, bias, grid, pooling)


def lower_padded_average(net: IntegerGraph, call: Call) -> None:
    """Writes average pooling whose windows reach into padding, which does not count.

    It is computed in UINT8: with no negative integers, AVERAGE_POOL_2D rounds halves
    upwards as Keras does. Conversion from INT8 and back only moves the zero point.

    Raises:
        ExportError: the file is for TFLite Micro.
    """
    if net.runtime == "micro":
        raise ExportError(
            "TFLite Micro cannot average over the edge of an image as Keras does. "
            f"Received: layer={call.name!r} with padding='same', whose windows reach "
            "beyond the image. Use padding='valid', or a DepthwiseConv2D."
        )
    source, index = net.input(call), call.outputs[0]
    assert source.grid is not None
    options = schema.Pool2DOptionsT()
    options.padding = SAME
    options.filterHeight, options.filterWidth = call.layer.pool_size
    options.strideH, options.strideW = call.layer.strides
    meaning = quantization(source.grid, source.zero_point + 128)
    before = net.shape(call.inputs[0], call.name)
    after = net.shape(index, call.name)
    lifted = net.file.tensor(f"{call.name}_lifted", before, "UINT8", meaning)
    pooled = net.file.tensor(f"{call.name}_pooled", after, "UINT8", meaning)
    net.file.operator("QUANTIZE", [source.tensor], [lifted])
    net.file.operator("AVERAGE_POOL_2D", [lifted], [pooled], options)
    meaning = quantization(source.grid, source.zero_point)
    tensor = net.file.tensor(call.name, after, "INT8", meaning)
    net.file.operator("QUANTIZE", [pooled], [tensor])
    net.values[index] = Value(tensor, source.grid, source.zero_point)
    net.checks.append(Check(call.name, call.kind, index, net.values[index]))
