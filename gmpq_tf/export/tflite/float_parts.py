"""Layers without integer operators, computed in float between DEQUANTIZE and QUANTIZE.

`quantize_model` puts every input and output of such a layer on a grid. So TensorFlow's
converter can convert each layer alone, and its operators are written between those two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import (
    FileBuilder,
    operator_name,
    read_model,
    tensor_type,
)
from gmpq_tf.export.tflite.integer_graph import IntegerGraph
from gmpq_tf.graph import Call, infer

# The converter's float operators differ from Keras's in the last bits, so values close
# to a half may round either way.
SLACK = 0.05
# Kinds whose formula in Keras XNNPACK does not compute everywhere: its RSQRT of 0 is
# NaN, also where Keras limits it afterwards. (layer, input) -> output.
SAFER: dict[str, Callable[[Any, tf.Tensor], tf.Tensor]] = {
    "UnitNormalization": lambda layer, x: tf.nn.l2_normalize(x, layer.axis),
}


@dataclass(frozen=True)
class FloatPart:
    """A layer that a file computes in float.

    Args:
        name: name of the layer.
        kind: class of the layer.
        operators: names of its TFLite operators, in order, without the conversions.
        constant_bytes: bytes of its weights, in float.
        content: the layer as a file of its own, to measure its time.
    """

    name: str
    kind: str
    operators: tuple[str, ...]
    constant_bytes: int
    content: bytes


def lower_float(net: IntegerGraph, call: Call) -> FloatPart:
    """Writes one layer in float, from the grids of its inputs to those of its results.

    Args:
        net: the file being written.
        call: the layer's call.

    Raises:
        ExportError: TensorFlow's converter refuses the layer, or needs operators that
            are not in TFLite.
    """
    indices = list(dict.fromkeys(call.inputs))
    content = converted(net, call, indices)
    model = read_model(content)
    given = [_dequantized(net, call, index) for index in indices]
    results = splice(net.file, model, given, call.name)
    for index, tensor in zip(call.outputs, results, strict=True):
        grid = net.next_grid(index, call.name)
        net.emit("QUANTIZE", [tensor], index, grid, name=call.name, slack=SLACK)
    graph = model.subgraphs[0]
    constants = {  # not shapes, axes and the like, which are integers
        tensor.buffer
        for number, tensor in enumerate(graph.tensors)
        if tensor_type(model, number) == "FLOAT32"
    }
    return FloatPart(
        call.name,
        call.kind,
        tuple(operator_name(model, operator) for operator in graph.operators),
        sum(len(_data(model, number)) for number in constants),
        content,
    )


def converted(net: IntegerGraph, call: Call, indices: list[int]) -> bytes:
    """A layer as a float file, with inputs and outputs in the order of the call.

    Args:
        net: the file being written, for shapes and the batch size.
        call: the layer's call.
        indices: numbers of the tensors that it reads, each once.

    Raises:
        ExportError: TensorFlow cannot convert the layer.
    """
    shapes = [net.shape(index, call.name) for index in indices]
    kinds = [net.graph.dtypes[index] for index in indices]
    wanted = [tf.TensorSpec(*pair) for pair in zip(shapes, kinds, strict=True)]

    def compute(*tensors: Any) -> list[Any]:
        values = dict(zip(indices, tensors, strict=True))
        if call.kind in SAFER:
            return [SAFER[call.kind](call.layer, values[call.inputs[0]])]
        found = infer(call, values)
        return [tf.identity(value) for value in keras.tree.flatten(found)]

    function = tf.function(compute, input_signature=wanted, autograph=False)
    try:
        concrete = function.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        return converter.convert()
    except Exception as error:  # the converter raises many classes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lacking = [line for line in lines if line.startswith("TF Select ops:")]
        causes = lacking or [line for line in lines if "error:" in line] or lines
        cause = " ".join(causes[:1])[:200]
        raise ExportError(
            "TensorFlow's converter must accept a layer that stays float. "
            f"Received: layer={call.name!r} of kind {call.kind} ({cause}). "
            "Replace it before quantize_model."
        ) from error


def splice(file: FileBuilder, model: Any, given: list[int], name: str) -> list[int]:
    """Copies the operators of a model into another file.

    Args:
        file: the file to write to.
        model: model with a single subgraph.
        given: tensors of `file` that replace the model's inputs.
        name: prefix of the new tensors' names.

    Returns:
        Tensors of `file` that hold the model's outputs.

    Raises:
        ExportError: the model has loops, or operators that are not in TFLite.
    """
    graph = model.subgraphs[0]
    names = [operator_name(model, operator) for operator in graph.operators]
    unusual = {"CUSTOM"}.intersection(names)
    if len(model.subgraphs) > 1 or unusual:
        what = "custom operators" if unusual else "loops"
        raise ExportError(
            "A layer that stays float must be made of TFLite's own operators. "
            f"Received: layer={name!r}, which needs {what}. Replace it before "
            "quantize_model."
        )
    places = {-1: -1, **dict(zip(map(int, graph.inputs), given, strict=True))}
    for number, tensor in enumerate(graph.tensors):
        if number not in places:
            data = _data(model, tensor.buffer)
            places[number] = file.tensor(
                f"{name}_float",
                _shape(tensor),
                tensor_type(model, number),
                data=data or None,
            )
    for code, operator in zip(names, graph.operators, strict=True):
        version = model.operatorCodes[operator.opcodeIndex].version
        inputs, outputs = (
            [places[int(number)] for number in numbers]
            for numbers in (operator.inputs, operator.outputs)
        )
        file.operator(code, inputs, outputs, operator.builtinOptions, version)
    return [places[int(number)] for number in graph.outputs]


def _dequantized(net: IntegerGraph, call: Call, index: int) -> int:
    """A float tensor of the file with the values of a tensor on a grid."""
    value = net.value(index)
    if value.grid is None:
        return value.tensor
    shape = net.shape(index, call.name)
    tensor = net.file.tensor(f"{call.name}_floats", shape, "FLOAT32")
    net.file.operator("DEQUANTIZE", [value.tensor], [tensor])
    return tensor


def _shape(tensor: Any) -> list[int | None]:
    sizes = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return [
        None if size < 0 else int(size) for size in ([] if sizes is None else sizes)
    ]


def _data(model: Any, buffer: int) -> bytes:
    data = model.buffers[buffer].data
    return b"" if data is None else np.asarray(data, np.uint8).tobytes()
