"""Convolutions and dense layers as TFLite operators, and their kernels in the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.fold import Folded, fold_layer
from gmpq_tf.export.integers.grids import Grid, clamps, grid_of
from gmpq_tf.export.integers.layouts import check_layer, stored_layout
from gmpq_tf.export.tflite.flatbuffer import PACKING, FileBuilder, Quantization
from gmpq_tf.export.tflite.fusion import fused_activation
from gmpq_tf.export.tflite.integer_graph import (
    IntegerGraph,
    Kernel,
    beyond_kernels,
)
from gmpq_tf.export.tflite.patches import lower_past, lower_patches
from gmpq_tf.graph import Call
from gmpq_tf.kernel_kinds import KERNEL_KINDS

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


# XNNPACK refuses an operator whose accumulator unit is 256 output steps or more.
LARGEST_RATIO = 200.0
# Just below it, one unit saturates every grid as well as a larger one would.
SATURATING_RATIO = 255.75
PATCHES_BYTES = 500  # size in a file of the operators of `lower_patches`
# With fewer filters, laying out patches takes longer than the convolution itself.
FEWEST_FILTERS = 32
CODES_A_BYTE = {"INT4": 2, "INT2": 4}
# Largest code on both sides of zero of each type that stores a kernel.
LARGEST_CODES = {"INT8": 127, "INT4": 7, "INT2": 1}
PACKED = ("CONV_2D", "FULLY_CONNECTED")  # operators that can be written as dense layers


def lower_layer(net: IntegerGraph, call: Call) -> None:
    """Writes a convolution or dense layer, with its BatchNormalization and ReLU."""
    layer = call.layer
    check_layer(call)
    source = net.move(call, grid_of(layer.input_quantizer), private=True)
    assert source.grid is not None
    fused = net.fuse(call)
    target = net.next_grid(fused.index, call.name)
    folded, stored = fold(net, call, fused.batch_norm, source.grid, target)
    codes, axis = stored_layout(stored.kind, folded.codes.reshape(stored.shape))
    kernel = add_kernel(
        net.file,
        f"{call.name}_kernel",
        codes,
        Quantization(tuple(folded.scale), 0, axis),
        stored.type,
    )
    bias = net.file.constant(
        None,
        folded.bias,
        Quantization(tuple(folded.scale * source.grid.step)),
    )
    net.kernels.append(Kernel(layer, call.name, kernel, bias, folded, stored.kind))
    before, after = (net.graph.shapes[i] for i in (call.inputs[0], call.outputs[0]))
    if getattr(layer, "padding", None) == "causal":
        source, before = lower_past(net, source, before, layer)
    if stored.kind != call.kind:
        source = lower_patches(net, source, before, after, layer)
    code, options = _operator(stored.kind, layer, net.graph.shapes[call.inputs[0]])
    options.fusedActivationFunction = fused_activation(fused.activation, target)
    operands = [source.tensor, kernel, bias]
    if code == "TRANSPOSE_CONV":  # the batch size given here must be that of the input
        size = [net.batch or 1, *net.graph.shapes[call.outputs[0]][1:]]
        operands = [net.file.integers(size), kernel, source.tensor, bias]
    net.emit(
        code,
        operands,
        fused.index,
        target,
        options,
        call.name,
        clamped=clamps(fused.activation, target),
        version=kernel_version(code, layer, stored.type, options),
        slack=folded.slack,
        cap=fused.cap,
    )


@dataclass(frozen=True)
class Stored:
    """How the kernel of a layer is stored.

    Args:
        kind: stock Keras class of the layer that the file computes, "Dense" for a
            convolution that is written as a dense layer over patches.
        shape: shape of the kernel in the layout of that class.
        type: "INT8", "INT4" or "INT2".
    """

    kind: str
    shape: tuple[int, ...]
    type: str


def stored_as(net: IntegerGraph, call: Call) -> Stored:
    """How the file's storage stores the kernel of a call; see `container`."""
    return container(net.storage, call.layer.kernel_quantizer.largest_code(), call)


def container(storage: str, largest_code: int, call: Call) -> Stored:
    """The smallest type that a storage allows and the runtime computes correctly.

    INT4 convolutions run in built-in kernels, which round twice (up to 25 % of the
    codes of ResNet-8's layers are a step off), and INT2 ones do not load. Both are
    written as a dense layer over patches, which XNNPACK computes as exactly as INT8
    ones, and faster than INT4 convolutions. Kernels with groups, depthwise ones and
    those that would save too little stay INT8.

    Args:
        storage: "fast", "packed" or "smallest".
        largest_code: largest code of the kernel's quantizer, in magnitude.
        call: call of a convolution or dense layer.
    """
    layer, shape = call.layer, tuple(call.layer.kernel.shape)
    unpacked = Stored(call.kind, shape, "INT8")
    operator = KERNEL_KINDS[call.kind].operator
    kind = packed_type(storage, largest_code, shape)
    if kind is None or operator not in PACKED or getattr(layer, "groups", 1) > 1:
        return unpacked
    if operator == "CONV_2D":
        packed = math.prod(shape) // CODES_A_BYTE[kind] + PATCHES_BYTES
        pays = packed < math.prod(shape) and shape[-1] >= FEWEST_FILTERS
        if not pays and not is_pointwise(call):
            return unpacked
        shape = (math.prod(shape[:-1]), shape[-1])
    return Stored("Dense", shape, kind)


def packed_type(storage: str, largest_code: int, shape: tuple[int, ...]) -> str | None:
    """Smallest type below INT8 in which XNNPACK computes a dense kernel; None: none.

    XNNPACK needs rows that fill whole bytes. Others run in built-in kernels, which
    round twice.

    Args:
        storage: "fast", "packed" or "smallest".
        largest_code: largest code of the kernel's quantizer, in magnitude.
        shape: shape of the kernel; the last axis is that of the outputs.
    """
    kinds = {"fast": (), "packed": ("INT4",), "smallest": ("INT2", "INT4")}
    for kind in kinds[storage]:
        if (
            largest_code <= LARGEST_CODES[kind]
            and math.prod(shape[:-1]) % CODES_A_BYTE[kind] == 0
        ):
            return kind
    return None


def is_pointwise(call: Call) -> bool:
    """Whether a convolution is a dense layer applied to every pixel."""
    layer = call.layer
    return math.prod((*layer.kernel_size, *layer.strides)) == 1


def fold(
    net: IntegerGraph, call: Call, batch_norm: Any | None, source: Grid, target: Grid
) -> tuple[Folded, Stored]:
    """Folds a layer (see `fold_layer`), and decides how to store its kernel.

    Codes are scaled up where `scale_codes` is on, or where the runtime refuses steps as
    large as these.
    """
    layer, stored = call.layer, stored_as(net, call)
    folded = fold_layer(layer, batch_norm, source.step, target.step)
    refused = folded.scale.max() * source.step / target.step >= LARGEST_RATIO
    if refused:
        stored = Stored(call.kind, tuple(layer.kernel.shape), "INT8")
    if refused or net.scale_codes:
        largest = LARGEST_CODES[stored.type]
        folded = fold_layer(layer, batch_norm, source.step, target.step, largest)
    return saturated(folded, call.name, source.step / target.step), stored


def saturated(folded: Folded, name: str, ratio: float) -> Folded:
    """The same layer with steps small enough for the runtime.

    If one unit of the accumulator is 256 output steps or more, every sum is zero or
    saturates the output. With 255.75 steps that is still so, provided that biases are
    whole units; so steps are reduced to that.

    Args:
        folded: the layer.
        name: name of the layer.
        ratio: step of its input over that of its output.

    Raises:
        ExportError: biases are not whole units, so results would be wrong.
    """
    largest, unit = SATURATING_RATIO / ratio, float(folded.scale.max()) * ratio
    if (folded.scale <= largest).all():
        return folded
    # float32 biases are whole units up to about a hundredth.
    if folded.slack > max(0.5, unit / 100):
        raise ExportError(beyond_kernels(name, unit))
    return replace(folded, scale=np.minimum(folded.scale, largest))


def add_kernel(
    file: FileBuilder, name: str, codes: np.ndarray, meaning: Quantization, kind: str
) -> int:
    """Adds a kernel, codes of any shape, in INT8, INT4 or INT2; returns the tensor."""
    return file.tensor(name, codes.shape, kind, meaning, PACKING[kind](codes))


def kernel_version(code: str, layer: Any, kind: str, options: Any) -> int | None:
    """Version of an operator that a layer needs; None: that of its 8-bit form."""
    if kind == "INT2":
        return 14
    if code == "FULLY_CONNECTED":
        return 12  # kernels with one step per channel
    if code == "TRANSPOSE_CONV" and options.fusedActivationFunction:
        return 4
    return 6 if getattr(layer, "groups", 1) > 1 and code == "CONV_2D" else None


def _operator(kind: str, layer: Any, shape: tuple) -> tuple[str, Any]:
    """Operator and options of a layer that is written as one of `kind`."""
    operator = KERNEL_KINDS[kind].operator
    return operator, OPTIONS[operator](layer, shape)


def conv_options(layer: Any, shape: tuple) -> Any:
    """Options of CONV_2D: padding, strides and dilation."""
    return window(schema.Conv2DOptionsT(), layer)


def depthwise_options(layer: Any, shape: tuple) -> Any:
    """Options of DEPTHWISE_CONV_2D: those of CONV_2D and the depth multiplier."""
    options = window(schema.DepthwiseConv2DOptionsT(), layer)
    options.depthMultiplier = layer.depth_multiplier
    return options


def dense_options(layer: Any, shape: tuple) -> Any:
    """Options of FULLY_CONNECTED, for an input of this shape."""
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = len(shape) > 2
    return options


def transposed_options(layer: Any, shape: tuple) -> Any:
    """Options of TRANSPOSE_CONV.

    If "same" cuts nothing off, it is written as "valid", which computes the same;
    XNNPACK has that also for windows shorter than their strides.
    """
    options = schema.TransposeConvOptionsT()
    pairs = zip(layer.kernel_size, layer.strides, strict=True)
    cuts = layer.output_padding is not None or any(k > s for k, s in pairs)
    options.padding = SAME if layer.padding == "same" and cuts else VALID
    options.strideH, options.strideW = layer.strides
    return options


# Operator -> (layer, shape of its input) -> options.
OPTIONS: dict[str, Callable[[Any, tuple], Any]] = {
    "CONV_2D": conv_options,
    "DEPTHWISE_CONV_2D": depthwise_options,
    "FULLY_CONNECTED": dense_options,
    "TRANSPOSE_CONV": transposed_options,
}


def window(options: Any, layer: Any) -> Any:
    """Copies padding, strides and dilation of a convolution to `options`."""
    options.padding = SAME if layer.padding == "same" else VALID
    options.strideH, options.strideW = layer.strides
    options.dilationHFactor, options.dilationWFactor = layer.dilation_rate
    return options


def add_depthwise(
    net: IntegerGraph,
    call: Call,
    codes: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    grid: Grid,
    options: Any,
    cap: float | None = None,
) -> None:
    """Writes another layer as a depthwise convolution with a kernel [1, H, W, C].

    `codes` are the kernel, `scale` [C] its steps, `bias` [C] in accumulator units.

    Raises:
        ExportError: the results are too small for 32-bit sums.
    """
    source = net.input(call)
    assert source.grid is not None
    file, name = net.file, call.name
    ratio = float(scale.max()) * source.grid.step / grid.step
    if ratio >= LARGEST_RATIO:
        raise ExportError(beyond_kernels(name, ratio))
    # INT4 would save a few bytes, but runs in kernels that round twice.
    kernel = add_kernel(
        file, f"{name}_kernel", codes, Quantization(tuple(scale), 0, 3), "INT8"
    )
    unit = Quantization(tuple(scale * source.grid.step))
    operands = [source.tensor, kernel, file.constant(None, bias, unit)]
    nonnegative = source.grid.low >= 0 and (codes >= 0).all() and (bias >= 0).all()
    net.emit(
        "DEPTHWISE_CONV_2D",
        operands,
        call.outputs[0],
        grid,
        options,
        name,
        clamped=bool(nonnegative or options.fusedActivationFunction) and grid.low <= 0,
        slack=ratio / 2,
        cap=cap,
    )
