"""Adds the inputs and outputs of a file, in the types that the caller asked for."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.integers.grids import Grid, Value, quantization
from gmpq_tf.export.tflite.integer_graph import IntegerGraph
from gmpq_tf.export.tflite.metadata import Described
from gmpq_tf.layer_kinds import Role
from gmpq_tf.task.output_names import output_keys
from gmpq_tf.transform.rewrite import NamedOutputs

UNREAD = Grid(1.0, -128, 127)  # grid of an input that no layer reads
# Pixels scaled to -1..1 fall midway between two codes, where kernels round differently.
INPUT_SLACK = 0.25


def add_inputs(net: IntegerGraph, input_type: str) -> dict[str, int]:
    """Adds the model's inputs; returns name -> tensor."""
    named = {}
    pairs = zip(net.graph.inputs, net.graph.input_names, strict=True)
    for index, name in pairs:
        read = net.consumers[index] or index in net.graph.outputs
        grid = net.next_grid(index, name) if read else UNREAD
        net.input_grids.append(grid)
        named[name] = _add_input(net, index, name, grid, input_type)
        net.end_grids[named[name]] = grid
    return named


def _add_input(
    net: IntegerGraph, index: int, name: str, grid: Grid, input_type: str
) -> int:
    shape = net.shape(index, name)
    if grid is UNREAD:
        meaning = None if input_type == "float32" else quantization(grid)
        return net.file.tensor(name, shape, input_type.upper(), meaning)
    if input_type == "int8":
        tensor = net.file.tensor(name, shape, "INT8", quantization(grid))
        value = net.clamp_below(Value(tensor, grid, grid.zero_point), shape, name)
        net.values[index] = value
        return tensor
    if input_type == "uint8":
        shifted = quantization(grid, grid.zero_point + 128)
        tensor = net.file.tensor(name, shape, "UINT8", shifted)
    else:
        tensor = net.file.tensor(name, shape, "FLOAT32")
    net.emit(
        "QUANTIZE",
        [tensor],
        index,
        grid,
        name=f"{name}_codes",
        slack=INPUT_SLACK,
    )
    return tensor


def add_outputs(net: IntegerGraph, output_type: str) -> dict[str, int]:
    """Converts the model's outputs to the type wanted; returns name -> tensor.

    Names are the keys of the model's dict, else those that Keras gives them.
    """
    named: dict[str, int] = {}
    keys = output_keys(net.graph)
    for position, index in enumerate(net.graph.outputs):
        name = keys[position] or _output_name(net, index, named, position)
        value = net.value(index)
        net.output_steps.append(value.grid.step if value.grid else 1 / 256)
        named[name] = _add_output(net, index, name, value, output_type)
        net.end_grids[named[name]] = value.grid
    return named


def described(net: IntegerGraph, named: dict[str, int]) -> list[Described]:
    """Descriptions of the file's inputs or outputs for the standard metadata."""
    kinds = {getattr(schema.TensorType, k.upper()): k for k in ("float32", "int8")}
    found = []
    for name, number in named.items():
        tensor = net.file.tensors[number]
        kind = kinds.get(tensor.type, "uint8")
        shape = (net.batch, *tensor.shape[1:])
        found.append(Described(name, shape, kind, net.end_grids[number]))
    return found


def _add_output(
    net: IntegerGraph, index: int, name: str, value: Value, output_type: str
) -> int:
    if value.grid is None or output_type == "int8":
        return value.tensor
    shape = net.shape(index, name)
    if output_type == "float32":
        tensor = net.file.tensor(name, shape, "FLOAT32")
        net.file.operator("DEQUANTIZE", [value.tensor], [tensor])
        return tensor
    shifted = quantization(value.grid, value.zero_point + 128)
    tensor = net.file.tensor(name, shape, "UINT8", shifted)
    net.file.operator("QUANTIZE", [value.tensor], [tensor])
    return tensor


def _output_name(net: IntegerGraph, index: int, taken: dict, position: int) -> str:
    """The model's name of an output, or that of the layer that computes it."""
    call = net.producers.get(index)
    if isinstance(net.student, NamedOutputs):
        name = net.graph.output_names[position]
        return name if name not in taken else f"{name}_{len(taken)}"
    while call is not None and call.role is Role.QUANTIZER:
        index = call.inputs[0]
        call = net.producers.get(index)
    if call is None:
        name = net.graph.input_names[net.graph.inputs.index(index)]
    else:
        name = call.name
    return name if name not in taken else f"{name}_{len(taken)}"
