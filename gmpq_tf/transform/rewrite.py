"""Build a new Keras model from a graph, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras

from gmpq_tf.graph import (
    Call,
    Graph,
    GraphError,
    KernelPart,
    fill,
    free_name,
    is_frozen_norm,
    is_searchable,
    unary_call,
)

FUSED_ACTIVATIONS = ("linear", "relu", "relu6")


def rebuild(
    graph: Graph,
    name: str,
    make_layer: Callable[[Call], Any],
    on_operand: Callable[[Call, int, Any], Any] = lambda call, index, tensor: tensor,
    on_output: Callable[[int, Any], Any] = lambda index, tensor: tensor,
) -> keras.Model:
    """Build a model with the graph's structure and new layers.

    Args:
        graph: what `read_graph` returned.
        name: name of the new model.
        make_layer: returns the new layer of a call; asked once a layer, so that
            shared layers stay shared.
        on_operand: `(call, tensor number, tensor) -> tensor` a call reads instead.
        on_output: `(tensor number, tensor) -> tensor` everybody reads instead.

    Returns:
        A functional model; the new layers hold fresh weights.
    """
    tensors: dict[int, Any] = {}
    inputs: dict[int, Any] = {}
    for index, input_name in zip(graph.inputs, graph.input_names, strict=True):
        inputs[index] = keras.Input(
            batch_shape=graph.shapes[index], dtype=graph.dtypes[index], name=input_name
        )
        tensors[index] = on_output(index, inputs[index])
    layers: dict[int, Any] = {}
    for call in graph.calls:
        if id(call.layer) not in layers:
            layers[id(call.layer)] = make_layer(call)
        operands = {i: on_operand(call, i, tensors[i]) for i in call.inputs}
        result = layers[id(call.layer)](
            *fill(call.args, operands), **fill(call.kwargs, operands)
        )
        for index, tensor in zip(call.outputs, keras.tree.flatten(result), strict=True):
            tensors[index] = on_output(index, tensor)
    return keras.Model(
        fill(graph.input_structure, inputs),
        fill(graph.output_structure, tensors),
        name=name,
    )


def clone_layer(call: Call) -> Any:
    """A new layer like the call's, with its configuration and fresh weights."""
    config = call.layer.get_config()
    if "name" in config:
        config["name"] = call.name
    if is_frozen_norm(call):
        config["trainable"] = False
    try:
        return _layer_class(call.layer).from_config(config)
    except Exception as error:
        raise GraphError(
            "Every layer must be rebuildable from its get_config(), because the input "
            f"model is never modified. Received: layer={call.name!r} "
            f"({type(call.layer).__name__}): {error}. Add get_config() to it."
        ) from error


def _layer_class(layer: Any) -> Any:
    if isinstance(layer, KernelPart):
        return getattr(keras.layers, layer.searchable_kind)
    return type(layer)


def copy_weights(graph: Graph, model: keras.Model) -> None:
    """Copy the graph's weights into the model's layers of the same names."""
    for call in graph.calls:
        source = call.layer
        if not getattr(source, "weights", None):
            continue
        target = model.get_layer(call.name)
        if is_searchable(source):
            target.kernel.assign(source.kernel)
            if source.use_bias:
                target.bias.assign(source.bias)
        else:
            target.set_weights(source.get_weights())
            if hasattr(target, "finalize_state"):  # Normalization computes with copies
                target.finalize_state()


def split_activations(graph: Graph) -> Graph:
    """Give every activation that cannot be fused into its layer a call of its own.

    Softmax, swish and the like inside a searchable layer become an `Activation` layer
    named `<layer>_activation`, so that the tensor between them can be quantized and
    the logits can be read. ReLU and ReLU6 stay: TFLite fuses them.
    """
    split = Graph(**{**graph.__dict__, "calls": [], "shapes": list(graph.shapes)})
    split.dtypes = list(graph.dtypes)
    taken = {call.name for call in graph.calls}
    activations: dict[str, Any] = {}
    for call in graph.calls:
        activation = call.activation
        if not is_searchable(call.layer) or activation in FUSED_ACTIVATIONS:
            split.calls.append(call)
            continue
        name = free_name(f"{call.name}_activation", taken)
        layer = activations.setdefault(
            name, keras.layers.Activation(call.layer.activation, name=name)
        )
        output = call.outputs[0]
        middle = split.new_tensor(graph.shapes[output], graph.dtypes[output])
        split.calls.append(replace(call, outputs=(middle,), split=True))
        split.calls.append(unary_call(layer, name, middle, output))
    return split


def logits_of(model: keras.Model) -> Any:
    """The tensor of a classifier's scores before its softmax (or sigmoid).

    Raises:
        GraphError: the softmax sits inside the last layer of a model with several
            outputs, or the model has no single output.
    """
    if len(model.outputs) != 1:
        raise GraphError(
            "A classifier must have one output. "
            f"Received: model={model.name!r} with {len(model.outputs)} outputs. "
            "Pass keras.Model(inputs, the_scores)."
        )
    output = model.outputs[0]
    layer, node_index, _ = output._keras_history
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if type(layer).__name__ == "Softmax" or (
        type(layer).__name__ == "Activation" and activation in ("softmax", "sigmoid")
    ):
        return layer._inbound_nodes[node_index].input_tensors[0]
    if activation not in ("softmax", "sigmoid"):
        return output
    return _without_activation(layer)(layer._inbound_nodes[node_index].input_tensors[0])


def _without_activation(layer: Any) -> Any:
    """A layer that shares the weights of `layer` but leaves out its activation."""
    return LinearView(layer, name=f"{layer.name}_logits")


class LinearView(keras.layers.Layer):
    """Calls another layer with its activation switched off, sharing its weights."""

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs: Any) -> Any:
        """The layer's output before its activation."""
        activation, self.layer.activation = self.layer.activation, None
        try:
            return self.layer(inputs)
        finally:
            self.layer.activation = activation
