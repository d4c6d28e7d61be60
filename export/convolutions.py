"""Convolutions and dense layers as TFLite operators, and their kernels in the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.graph import Call

from .errors import ExportError
from .flatbuffer import FileBuilder, Quantization, pack_int4
from .fold import fold_layer
from .grids import Grid, clamps, grid_of
from .integer_graph import FUSED, IntegerGraph, Kernel

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


def lower_layer(net: IntegerGraph, call: Call) -> None:
    """Convolution or dense layer, BatchNormalization and ReLU in one kernel."""
    layer = call.layer
    check_layer(call)
    source = net.move(call, grid_of(layer.input_quantizer), private=True)
    assert source.grid is not None
    fused = net.fuse(call)
    target = net.next_grid(fused.index, call.name)
    bits = layer.kernel_quantizer.bits[0]
    int4 = net.packed and bits <= 4 and call.kind != "DepthwiseConv2D"
    largest = (7 if int4 else 127) if net.scale_codes else None
    folded = fold_layer(layer, fused.batch_norm, source.grid.step, target.step, largest)
    codes, axis = stored_layout(call.kind, folded.codes)
    scale = folded.scale
    if call.kind == "Dense" and np.all(scale == scale[0]):
        scale = scale[:1]
    meaning = Quantization(tuple(scale), 0, axis)
    kernel = add_kernel(net.file, f"{call.name}_kernel", codes, meaning, int4)
    bias = net.file.constant(
        f"{call.name}_bias",
        folded.bias,
        Quantization(tuple(scale * source.grid.step)),
    )
    net.kernels.append(Kernel(layer, call.name, kernel, folded))
    code, options = KERNELS[call.kind](layer, net.graph.shapes[call.inputs[0]])
    options.fusedActivationFunction = FUSED[fused.activation]
    net.emit(
        code,
        [source.tensor, kernel, bias],
        fused.index,
        target,
        options,
        call.name,
        clamped=clamps(fused.activation, target),
        version=kernel_version(code, options, layer, int4),
        # INT4 convolutions run in built-in kernels, which round twice.
        slack=folded.slack(source.grid.step, target.step) * (3 if int4 else 1),
    )


def check_layer(call: Call) -> None:
    """Refuse layers that have no quantizers, or a layout TFLite lacks."""
    layer = call.layer
    quantizers = [getattr(layer, f"{k}_quantizer", None) for k in ("input", "kernel")]
    if None in quantizers or any(len(q.bits) != 1 for q in quantizers if q):
        raise ExportError(
            "Every convolution and dense layer must have one input quantizer and one "
            f"kernel quantizer. Received: layer={call.name!r} "
            f"({type(layer).__name__}). Export what gmpq_tf.quantize_model returned."
        )
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ExportError(
            "Channels must be last. "
            f"Received: layer={call.name!r} with data_format={layer.data_format!r}. "
            "Build the model with data_format='channels_last'."
        )
    if call.activation not in FUSED:
        raise ExportError(
            "An activation inside a layer must be linear, relu or relu6. "
            f"Received: layer={call.name!r} with activation={call.activation!r}. "
            "Export what gmpq_tf.quantize_model returned, which splits it off."
        )


def add_kernel(
    file: FileBuilder, name: str, codes: np.ndarray, meaning: Quantization, int4: bool
) -> int:
    """Add a kernel, in INT4 (two codes a byte) or INT8."""
    if int4:
        return file.tensor(name, codes.shape, "INT4", meaning, pack_int4(codes))
    return file.constant(name, codes, meaning)


def stored_layout(kind: str, kernel: np.ndarray) -> tuple[np.ndarray, int]:
    """Kernel in the layout of TFLite, and its axis of output channels."""
    if kind == "Dense":
        return kernel.T, 0
    if kind == "Conv2D":
        return kernel.transpose(3, 0, 1, 2), 0
    height, width = kernel.shape[:2]
    return kernel.reshape(1, height, width, -1), 3


def keras_layout(kind: str, kernel: np.ndarray, shape: tuple) -> np.ndarray:
    """Inverse of `stored_layout`, for a Keras kernel of the given shape."""
    if kind == "Dense":
        return kernel.T
    if kind == "Conv2D":
        return kernel.transpose(1, 2, 3, 0)
    return kernel.reshape(shape)


def kernel_version(code: str, options: Any, layer: Any, int4: bool) -> int | None:
    """Operator version that a runtime must know to run a layer."""
    if int4:
        return {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}[code]
    if getattr(layer, "groups", 1) > 1 and code == "CONV_2D":
        return 6
    return 5 if getattr(options, "keepNumDims", False) else None


def conv_options(layer: Any, shape: tuple) -> tuple[str, Any]:
    """Operator and options of a Conv2D."""
    return "CONV_2D", window(schema.Conv2DOptionsT(), layer)


def depthwise_options(layer: Any, shape: tuple) -> tuple[str, Any]:
    """Operator and options of a DepthwiseConv2D."""
    options = window(schema.DepthwiseConv2DOptionsT(), layer)
    options.depthMultiplier = layer.depth_multiplier
    return "DEPTHWISE_CONV_2D", options


def dense_options(layer: Any, shape: tuple) -> tuple[str, Any]:
    """Operator and options of a Dense."""
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = len(shape) > 2
    return "FULLY_CONNECTED", options


KERNELS: dict[str, Callable[[Any, tuple], tuple[str, Any]]] = {
    "Conv2D": conv_options,
    "DepthwiseConv2D": depthwise_options,
    "Dense": dense_options,
}


def window(options: Any, layer: Any) -> Any:
    """Copy padding, strides and dilation of a convolution."""
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
) -> None:
    """A depthwise convolution that stands for another layer."""
    source = net.input(call)
    assert source.grid is not None
    file, name = net.file, call.name
    meaning = Quantization(tuple(scale), 0, 3)
    int4 = net.packed and np.abs(codes).max() <= 7
    kernel = add_kernel(file, f"{name}_kernel", codes, meaning, int4)
    unit = Quantization(tuple(scale * source.grid.step))
    operands = [source.tensor, kernel, file.constant(f"{name}_bias", bias, unit)]
    nonnegative = source.grid.low >= 0 and (codes >= 0).all() and (bias >= 0).all()
    net.emit(
        "DEPTHWISE_CONV_2D",
        operands,
        call.outputs[0],
        grid,
        options,
        name,
        clamped=bool(nonnegative) and grid.low <= 0,
        version=7 if int4 else None,
        slack=float(scale.max())
        * source.grid.step
        / grid.step
        / 2
        * (3 if int4 else 1),
    )
