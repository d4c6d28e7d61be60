"""Layers that only move values: reshape, permute, pad, crop, repeat, concatenate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Grid, Value, quantization
from gmpq_tf.export.tflite.integer_graph import (
    IntegerGraph,
    constant_shape,
    image_shape,
)
from gmpq_tf.graph import Call


def lower_alias(net: IntegerGraph, call: Call) -> None:
    """Writes nothing: the output of a layer that is an identity is its input."""
    net.values[call.outputs[0]] = net.input(call)


def view(
    net: IntegerGraph, call: Call, code: str, extra: list[int], options: Any
) -> None:
    """Writes an operator whose result is on the grid of its input.

    Args:
        net: the file being written.
        call: the layer.
        code: name of the operator.
        extra: tensors that it reads after the input.
        options: options of the operator.
    """
    source, index = net.input(call), call.outputs[0]
    assert source.grid is not None
    kind = quantization(source.grid, source.zero_point)
    shape = net.shape(index, call.name)
    tensor = net.file.tensor(call.name, shape, "INT8", kind)
    net.file.operator(code, [source.tensor, *extra], [tensor], options)
    net.values[index] = Value(tensor, source.grid, source.zero_point)


def lower_reshape(net: IntegerGraph, call: Call) -> None:
    """Writes Flatten or Reshape; the batch stays open unless it is fixed."""
    source = call.inputs[0]
    call = replace(call, inputs=(net.images.get(source, source),))
    shape = constant_shape(net.shape(call.outputs[0], call.name))
    options = schema.ReshapeOptionsT()
    options.newShape = shape
    view(net, call, "RESHAPE", [net.file.integers(shape)], options)


def flat(net: IntegerGraph, call: Call, compute: Callable[[Call], None]) -> None:
    """Computes a call as [batch, 1, pixels, channels], then reshapes it as in Keras."""
    graph = net.graph
    middle = graph.new_tensor(image_shape(graph.shapes[call.outputs[0]]), "float32")
    inner = replace(call, outputs=(middle,))
    net.producers[middle] = inner
    net.stands_for[middle] = call.outputs[0]
    net.consumers[middle] = []
    compute(inner)
    outer = Call(call.layer, f"{call.name}_flat", (), {}, (middle,), call.outputs)
    lower_reshape(net, outer)


def lower_permute(net: IntegerGraph, call: Call) -> None:
    """Writes Permute; Keras counts axes from 1, without the batch."""
    order = net.file.integers([0, *call.layer.dims])
    view(net, call, "TRANSPOSE", [order], schema.TransposeOptionsT())


def lower_padding(net: IntegerGraph, call: Call) -> None:
    """Writes ZeroPadding2D, or ZeroPadding1D as an image of one row, as a PAD."""
    pads = np.array([(0, 0), *call.layer.padding, (0, 0)])
    paddings = net.file.integers(pads)
    view(net, call, "PAD", [paddings], schema.PadOptionsT())


def lower_cropping(net: IntegerGraph, call: Call) -> None:
    """Writes Cropping2D, or Cropping1D as an image of one row, as a SLICE."""
    (top, _), (left, _) = call.layer.cropping
    size = constant_shape(net.shape(call.outputs[0], call.name))
    operands = [
        net.file.integers([0, top, left, 0]),
        net.file.integers(size),
    ]
    view(net, call, "SLICE", operands, schema.SliceOptionsT())


def lower_upsampling(net: IntegerGraph, call: Call) -> None:
    """Writes UpSampling2D by repetition, as a RESIZE_NEAREST_NEIGHBOR.

    Raises:
        ExportError: the layer interpolates in another way.
    """
    if call.layer.interpolation != "nearest":
        raise ExportError(
            "UpSampling2D must repeat pixels. "
            f"Received: layer={call.name!r} with "
            f"interpolation={call.layer.interpolation!r}. Use 'nearest'."
        )
    size = net.shape(call.outputs[0], call.name)[1:3]
    view(
        net,
        call,
        "RESIZE_NEAREST_NEIGHBOR",
        [net.file.integers(size)],
        schema.ResizeNearestNeighborOptionsT(),
    )


def lower_concatenate(net: IntegerGraph, call: Call) -> None:
    """Writes a concatenation of tensors that are on one grid."""
    first, tensors = on_one_grid(net, call)
    index = call.outputs[0]
    shape = net.shape(index, call.name)
    net.values[index] = concatenate(
        net, call.name, first, tensors, shape, call.layer.axis
    )


def on_one_grid(net: IntegerGraph, call: Call) -> tuple[Value, list[int]]:
    """The operand with the widest grid, and all operands moved to its zero point.

    Raises:
        ExportError: their steps differ.
    """
    operands = [net.input(call, i) for i in range(len(call.inputs))]
    first = max(operands, key=lambda v: _span(v.grid))
    assert first.grid is not None
    tensors = []
    for value, index in zip(operands, call.inputs, strict=True):
        assert value.grid is not None
        if value.grid.step != first.grid.step:
            raise ExportError(
                f"The operands of {call.kind} must share one grid. "
                f"Received: layer={call.name!r} with steps {first.grid.step} and "
                f"{value.grid.step}. Export what gmpq_tf.quantize_model returned."
            )
        if value.zero_point != first.zero_point:
            shape = net.shape(index, call.name)
            value = net.shift(value, first.zero_point, shape, f"{call.name}_operand")
        tensors.append(value.tensor)
    return first, tensors


def concatenate(
    net: IntegerGraph,
    name: str,
    first: Value,
    tensors: list[int],
    shape: list[int | None],
    axis: int,
) -> Value:
    """Writes a CONCATENATION of tensors that are on the grid of `first`."""
    assert first.grid is not None
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    kind = quantization(first.grid, first.zero_point)
    tensor = net.file.tensor(name, shape, "INT8", kind)
    net.file.operator("CONCATENATION", tensors, [tensor], options)
    return Value(tensor, first.grid, first.zero_point)


def _span(grid: Grid | None) -> int:
    return 0 if grid is None else grid.high - grid.low
