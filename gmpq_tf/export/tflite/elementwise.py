"""Layers that work on each value: quantizers, ReLU, scaling, sums, products, gates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.fold import affine, affine_of
from gmpq_tf.export.integers.grids import Grid, Value, clamps, grid_of, quantization
from gmpq_tf.export.tflite.convolutions import VALID, add_depthwise
from gmpq_tf.export.tflite.fusion import Fused, fused_activation, relu_name
from gmpq_tf.export.tflite.integer_graph import (
    IntegerGraph,
    image_shape,
)
from gmpq_tf.export.tflite.shapes import flat, lower_alias, lower_reshape, view
from gmpq_tf.graph import Call
from gmpq_tf.layer_kinds import Role
from gmpq_tf.layers.unit_quantizer import UNIT_STEP
from gmpq_tf.transform.gates import curve
from gmpq_tf.transform.units import cap_of

UNIT = Grid(UNIT_STEP, 0, 255)  # the only grid that SOFTMAX and LOGISTIC write


def lower_quantizer(net: IntegerGraph, call: Call) -> None:
    """Writes a quantizer; without an operator if the tensor is on its grid already."""
    net.values[call.outputs[0]] = net.move(call, grid_of(call.layer), private=False)


def lower_relu(net: IntegerGraph, call: Call) -> None:
    """Writes a ReLU that is not fused: one integer operator on its input's grid."""
    source, name, cap = net.input(call), relu_name(call), cap_of(call)
    assert source.grid is not None
    grid = Grid(source.grid.step, max(source.grid.low, 0), source.grid.high)
    six = name == "relu6" and grid.high * grid.step > 6
    if name == "linear" or (source.grid.low >= 0 and not six):
        lower_alias(net, call)
    else:
        view(net, call, name.upper(), [], None)
        value = net.values[call.outputs[0]]
        net.values[call.outputs[0]] = Value(value.tensor, grid, value.zero_point)
    if cap is not None and not six:
        index = call.outputs[0]
        shape = net.shape(index, call.name)
        value = net.clamp_above(net.values[index], cap, shape, call.name)
        net.values[index] = value


def lower_affine(net: IntegerGraph, call: Call) -> None:
    """Writes layers that compute `f x + o` per channel, with the ReLU behind them.

    These are Rescaling and the like, and BatchNormalization that folds into no layer.
    They become a 1x1 depthwise convolution.
    """
    fused = net.fuse(call)
    call, shape = replace(call, outputs=(fused.index,)), net.graph.shapes[fused.index]
    grid = net.next_grid(fused.index, call.name)
    if len(shape) == 4:
        return add_affine(net, call, grid, fused)
    source = net.graph.new_tensor(image_shape(shape), "float32")
    lift = Call(call.layer, f"{call.name}_lift", (), {}, call.inputs, (source,))
    lower_reshape(net, lift)
    lifted = replace(call, inputs=(source,))
    flat(net, lifted, lambda inner: add_affine(net, inner, grid, fused))


def add_affine(net: IntegerGraph, call: Call, grid: Grid, fused: Fused) -> None:
    """Writes the depthwise convolution of `lower_affine`."""
    factor, offset = affine_of(call, net.graph.shapes[call.inputs[0]][-1])
    source = net.input(call)
    assert source.grid is not None
    codes, scale, bias = affine(factor, offset, source.grid.step)
    if curve(call) == "hard_sigmoid":
        # The step is a power of two, so results may lie exactly midway between two
        # codes, which XNNPACK rounds to even. One unit of the accumulator, 1/127 of the
        # distance between two values, lifts them, so that they round upwards as in
        # Keras.
        bias = bias + np.int32(1)
    options = schema.DepthwiseConv2DOptionsT()
    options.padding, options.depthMultiplier = VALID, 1
    options.strideH = options.strideW = 1
    options.fusedActivationFunction = fused_activation(fused.activation, grid)
    codes = codes.reshape(1, 1, 1, -1)
    add_depthwise(net, call, codes, scale, bias, grid, options, fused.cap)


def lower_gate(net: IntegerGraph, call: Call) -> None:
    """Writes a sigmoid as LOGISTIC, a hard sigmoid as a scaling that saturates.

    Raises:
        ExportError: the sigmoid is on another grid than that of 1/256.
    """
    grid = net.next_grid(call.outputs[0], call.name)
    if grid != UNIT:
        raise ExportError(
            "A sigmoid inside a model must be on the grid of 1/256. "
            f"Received: layer={call.name!r} on steps of {grid.step}. Build the model "
            "with gmpq_tf.quantize_model, and export it as it is."
        )
    if curve(call) == "hard_sigmoid":
        return lower_affine(net, call)
    source = net.input(call).tensor
    net.emit("LOGISTIC", [source], call.outputs[0], grid, name=call.name, clamped=True)


def lower_multiply(net: IntegerGraph, call: Call) -> None:
    """Writes a product of two tensors, or of a tensor and a constant."""
    if len(call.inputs) == 1:
        return lower_affine(net, call)
    check_two(call)
    operands, index = [net.input(call, i) for i in range(2)], call.outputs[0]
    grid = net.next_grid(index, call.name)
    nonnegative = all(v.grid is not None and v.grid.low >= 0 for v in operands)
    net.emit(
        "MUL",
        [v.tensor for v in operands],
        index,
        grid,
        schema.MulOptionsT(),
        call.name,
        clamped=nonnegative and grid.low <= 0,
    )


def check_two(call: Call) -> None:
    """Refuses sums and products of more than two tensors.

    Raises:
        ExportError: there are not two.
    """
    if len(call.inputs) != 2:
        what = "A product" if call.role is Role.PRODUCT else "An addition"
        raise ExportError(
            f"{what} must have two operands, because TFLite rounds after each. "
            f"Received: layer={call.name!r} with {len(call.inputs)}. Write it as "
            "several of two before quantize_model."
        )


def lower_add(net: IntegerGraph, call: Call) -> None:
    """Writes a sum of two tensors, with its ReLU, or of a tensor and a constant."""
    if len(call.inputs) == 1:
        return lower_affine(net, call)
    check_two(call)
    operands = [net.input(call, i) for i in range(2)]
    fused = net.fuse(call)
    grid = net.next_grid(fused.index, call.name)
    options = schema.AddOptionsT()
    options.fusedActivationFunction = fused_activation(fused.activation, grid)
    nonnegative = all(v.grid is not None and v.grid.low >= 0 for v in operands)
    clamped = clamps(fused.activation, grid) or (nonnegative and grid.low <= 0)
    tensors = [v.tensor for v in operands]
    net.emit(
        "ADD",
        tensors,
        fused.index,
        grid,
        options,
        call.name,
        clamped=clamped,
        cap=fused.cap,
    )


def lower_final(net: IntegerGraph, call: Call, output_type: str) -> None:
    """Writes the softmax or sigmoid at the end of a model.

    It is computed in float, unless the file's outputs are integers.
    """
    source, index = net.input(call), call.outputs[0]
    assert source.grid is not None
    shape = net.shape(index, call.name)
    softmax = "softmax" in (curve(call), call.activation)
    code = "SOFTMAX" if softmax else "LOGISTIC"
    options: Any = schema.SoftmaxOptionsT() if softmax else None
    if softmax:
        options.beta = 1.0
    if output_type == "float32":
        logits = net.file.tensor(f"{call.name}_logits", shape, "FLOAT32")
        net.file.operator("DEQUANTIZE", [source.tensor], [logits])
        tensor = net.file.tensor(call.name, shape, "FLOAT32")
        net.file.operator(code, [logits], [tensor], options)
        net.values[index] = Value(tensor, None)
        return
    tensor = net.file.tensor(call.name, shape, "INT8", quantization(UNIT))
    net.file.operator(code, [source.tensor], [tensor], options)
    net.values[index] = Value(tensor, UNIT, UNIT.zero_point)
