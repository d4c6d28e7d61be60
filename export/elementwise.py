"""Layers that work on each value: quantizers, ReLU, scaling, addition, softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.graph import Call

from .convolutions import VALID, add_depthwise
from .errors import ExportError
from .fold import affine, normalization
from .grids import Grid, Value, clamps, grid_of, quantization
from .integer_graph import FUSED, IntegerGraph, relu_name
from .shapes import flat, lower_alias, lower_reshape, view

FINAL = frozenset(["softmax", "sigmoid", "Softmax", "Sigmoid"])


def lower_quantizer(net: IntegerGraph, call: Call) -> None:
    """A quantizer on a tensor: nothing where it is on that grid already."""
    net.values[call.outputs[0]] = net.move(call, grid_of(call.layer), private=False)


def lower_relu(net: IntegerGraph, call: Call) -> None:
    """A ReLU on its own: one integer operator on the grid of its input."""
    source, name = net.input(call), relu_name(call)
    assert source.grid is not None
    grid = Grid(source.grid.step, max(source.grid.low, 0), source.grid.high)
    six = name == "relu6" and grid.high * grid.step > 6
    if name == "linear" or (source.grid.low >= 0 and not six):
        return lower_alias(net, call)
    view(net, call, name.upper(), [], None)
    value = net.values[call.outputs[0]]
    net.values[call.outputs[0]] = Value(value.tensor, grid, value.zero_point)


def lower_affine(net: IntegerGraph, call: Call) -> None:
    """BatchNormalization on its own, or Rescaling: a 1x1 depthwise convolution."""
    index = call.outputs[0]
    grid = net.next_grid(index, call.name)
    if len(net.graph.shapes[index]) == 4:
        return add_affine(net, call, grid)
    if len(net.graph.shapes[index]) != 2:
        raise ExportError(
            "Scaling needs [batch, channels] or [batch, height, width, channels]. "
            f"Received: layer={call.name!r} of shape {net.graph.shapes[index]}. "
            "Reshape before it."
        )
    graph, (batch, channels) = net.graph, net.graph.shapes[index]
    source = graph.new_tensor((batch, 1, 1, channels), "float32")
    lift = Call(call.layer, f"{call.name}_lift", (), {}, call.inputs, (source,))
    lower_reshape(net, lift)
    lifted = Call(call.layer, call.name, (), {}, (source,), call.outputs)
    flat(net, lifted, lambda inner: add_affine(net, inner, grid))


def add_affine(net: IntegerGraph, call: Call, grid: Grid) -> None:
    """The depthwise convolution of `lower_affine`."""
    channels = net.graph.shapes[call.inputs[0]][-1]
    if call.kind == "Rescaling":
        factor = np.broadcast_to(np.asarray(call.layer.scale, "float64"), channels)
        offset = np.broadcast_to(np.asarray(call.layer.offset, "float64"), channels)
    else:
        factor, offset = normalization(call.layer, channels)
    source = net.input(call)
    assert source.grid is not None
    codes, scale, bias = affine(factor, offset, source.grid.step)
    options = schema.DepthwiseConv2DOptionsT()
    options.padding, options.depthMultiplier = VALID, 1
    options.strideH = options.strideW = 1
    add_depthwise(net, call, codes.reshape(1, 1, 1, -1), scale, bias, grid, options)


def lower_add(net: IntegerGraph, call: Call) -> None:
    """Add of two tensors, with the ReLU after it."""
    if len(call.inputs) != 2:
        raise ExportError(
            "An addition must have two operands, because TFLite rounds after each. "
            f"Received: layer={call.name!r} with {len(call.inputs)}. Write it as "
            "additions of two before quantize_model."
        )
    operands = [net.input(call, i) for i in range(2)]
    fused = net.fuse(call)
    grid = net.next_grid(fused.index, call.name)
    options = schema.AddOptionsT()
    options.fusedActivationFunction = FUSED[fused.activation]
    nonnegative = all(v.grid is not None and v.grid.low >= 0 for v in operands)
    clamped = clamps(fused.activation, grid) or (nonnegative and grid.low <= 0)
    tensors = [v.tensor for v in operands]
    net.emit("ADD", tensors, fused.index, grid, options, call.name, clamped=clamped)


def lower_final(net: IntegerGraph, call: Call, output_type: str) -> None:
    """Softmax or sigmoid that ends a model: in float, unless integers are wanted."""
    source, index = net.input(call), call.outputs[0]
    assert source.grid is not None
    shape = net.shape(index, call.name)
    softmax = "softmax" in (call.activation, call.kind.lower())
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
    grid = Grid(1 / 256, 0, 255)  # the only one these kernels write
    tensor = net.file.tensor(call.name, shape, "INT8", quantization(grid))
    net.file.operator(code, [source.tensor], [tensor], options)
    net.values[index] = Value(tensor, grid, grid.zero_point)
