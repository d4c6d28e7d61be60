"""Builds functional tf_keras models from graphs, and reads their graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tfmot.libraries import libraries
from gmpq_tf.export.tfmot.translate import MERGES, training_of
from gmpq_tf.export.tfmot.weights import unwrapped
from gmpq_tf.graph import Call, Graph, Ref, fill


def build_tf_keras(
    graph: Graph, name: str, make_layer: Callable[[Call, Graph], Any]
) -> Any:
    """The tf_keras model of a Keras 3 graph; calls without a layer are left out.

    Args:
        graph: graph of a Keras 3 model.
        name: name of the new model.
        make_layer: (call, graph) -> tf_keras layer; None: the call is left out.
    """
    tf_keras = libraries().tf_keras
    inputs = {
        index: tf_keras.Input(
            graph.shapes[index][1:],
            batch_size=graph.shapes[index][0],
            dtype=graph.dtypes[index],
            name=input_name,
        )
        for index, input_name in zip(graph.inputs, graph.input_names, strict=True)
    }
    tensors: dict[int, Any] = dict(inputs)
    layers: dict[int, Any] = {}
    for call in graph.calls:
        if id(call.layer) not in layers:
            layers[id(call.layer)] = make_layer(call, graph)
        layer = layers[id(call.layer)]
        operands = [tensors[i] for i in call.inputs]
        result = operands[0]
        if layer is not None:
            given = operands if call.kind in MERGES else operands[0]
            result = layer(given, **training_of(call.kind, call.kwargs))
        tensors[call.outputs[0]] = result
    return tf_keras.Model(
        fill(graph.input_structure, inputs),
        fill(graph.output_structure, tensors),
        name=name,
    )


def read_tf_keras(model: Any) -> Graph:
    """The graph of a functional tf_keras model.

    Raises:
        ExportError: the model is not a functional one of tf_keras.
    """
    if not isinstance(model, libraries().tf_keras.Model) or not hasattr(
        model, "_nodes_by_depth"
    ):
        raise ExportError(
            "model must be a functional tf_keras model. "
            f"Received: model={_described(model)}. Pass what quantize_apply returned."
        )
    graph = Graph(input_names=list(model.input_names))
    numbers = {id(t): graph.new_tensor(t.shape, t.dtype.name) for t in model.inputs}
    graph.inputs = list(numbers.values())
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                graph.calls.append(_read_node(node, numbers, graph))

    def refs(structure: Any) -> Any:
        return tf.nest.map_structure(lambda t: Ref(numbers[id(t)]), structure)

    graph.outputs = [numbers[id(t)] for t in model.outputs]
    graph.input_structure = refs(model._nested_inputs)
    graph.output_structure = refs(model._nested_outputs)
    return graph


def _read_node(node: Any, numbers: dict[int, int], graph: Graph) -> Call:
    sources = tuple(numbers[id(t)] for t in node.keras_inputs)
    output = graph.new_tensor(node.outputs.shape, node.outputs.dtype.name)
    numbers[id(node.outputs)] = output
    operands = [Ref(i) for i in sources]
    layer = unwrapped(node.layer)
    merges = type(layer).__name__ in MERGES
    return Call(
        node.layer,
        layer.name,
        (operands,) if merges else (operands[0],),
        training_of(type(layer).__name__, node.call_kwargs),
        sources,
        (output,),
    )


def _described(model: Any) -> str:
    kind = "keras.Model of Keras 3" if isinstance(model, keras.Model) else "object"
    return f"{kind}, {type(model).__module__}.{type(model).__name__}"
