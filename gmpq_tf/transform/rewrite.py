"""Builds a new Keras model from a graph, layer by layer."""

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
    activation_name,
    fill,
    free_name,
    functional_of,
    is_frozen_norm,
    is_identity,
    is_over_last_axis,
    is_searchable,
    is_stock,
    layer_kind,
    read_graph,
    unary_call,
)
from gmpq_tf.layer_kinds import ACTIVATION, Role, function_of, kind_of
from gmpq_tf.transform.precision import in_float32, made_in_float32


@keras.saving.register_keras_serializable("gmpq_tf")
class NamedOutputs(keras.Model):
    """A functional model whose outputs keep their names, whatever layers make them.

    Keras names outputs after their last layers, and addresses losses and metrics by
    these names.

    Args:
        inputs: as for `keras.Model`.
        outputs: as for `keras.Model`.
        name: name of the model.
        **kwargs: `output_names`, one for each output; others as for `keras.Model`.
    """

    def __init__(
        self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any
    ) -> None:
        names = kwargs.pop("output_names", None)
        super().__init__(inputs, outputs, name=name, **kwargs)
        if names:
            self.output_names = list(names)

    def get_config(self) -> dict:
        """The functional model's configuration, with the names of its outputs."""
        return {**super().get_config(), "output_names": list(self.output_names)}

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> NamedOutputs:
        config = dict(config)
        names = config.pop("output_names")
        model = super().from_config(config, custom_objects=custom_objects)
        model.output_names = list(names)
        return model


def rebuild(
    graph: Graph,
    name: str,
    make_layer: Callable[[Call], Any],
    on_operand: Callable[[Call, int, Any], Any] = lambda call, index, tensor: tensor,
    on_output: Callable[[int, Any], Any] = lambda index, tensor: tensor,
) -> keras.Model:
    """Builds a model with the graph's structure and new layers.

    Args:
        graph: what `read_graph` returned.
        name: name of the new model.
        make_layer: call -> its new layer; called once for each layer, so that shared
            layers stay shared.
        on_operand: `(call, tensor number, tensor)` -> the tensor that this call reads
            instead.
        on_output: `(tensor number, tensor)` -> the tensor that all calls read instead.

    Returns:
        A functional model with float32 layers and inputs; the new layers have fresh
        weights.

    Raises:
        GraphError: the model computes with integer inputs before it casts them to
            floats.
    """
    _check_whole_numbers(graph)
    with made_in_float32():
        return _rebuild(graph, name, make_layer, on_operand, on_output)


def _rebuild(
    graph: Graph,
    name: str,
    make_layer: Callable[[Call], Any],
    on_operand: Callable[[Call, int, Any], Any],
    on_output: Callable[[int, Any], Any],
) -> keras.Model:
    tensors: dict[int, Any] = {}
    inputs: dict[int, Any] = {}
    for index, input_name in zip(graph.inputs, graph.input_names, strict=True):
        text = graph.dtypes[index] == "string"
        inputs[index] = keras.Input(
            batch_shape=graph.shapes[index],
            dtype="string" if text else "float32",
            name=input_name,
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
    structures = (
        fill(graph.input_structure, inputs),
        fill(graph.output_structure, tensors),
    )
    model = keras.Model(*structures, name=name)
    if not graph.output_names or model.output_names == graph.output_names:
        return model
    return NamedOutputs(*structures, name=name, output_names=graph.output_names)


def _check_whole_numbers(graph: Graph) -> None:
    """Refuses integer inputs that are computed with before they are cast to floats.

    The new model has float inputs, for which e.g. a division gives other results.
    """
    others = ("float", "bfloat", "string")
    whole = {i for i in graph.inputs if not graph.dtypes[i].startswith(others)}
    for call in graph.calls:
        if not whole.intersection(call.inputs):
            continue
        if all(graph.dtypes[i].startswith(others) for i in call.outputs):
            continue
        if not call.row.whole and not is_identity(call):
            types = sorted({graph.dtypes[i] for i in call.inputs})
            raise GraphError(
                "Inputs of whole numbers must be made floats before they are computed "
                f"with. Received: layer={call.name!r} of kind {call.kind}, which reads "
                f"{', '.join(types)}. Put a Rescaling layer or keras.ops.cast(x, "
                "'float32') before it, or give keras.Input no dtype."
            )
        whole.update(call.outputs)


def clone_layer(call: Call) -> Any:
    """A new float32 layer with the configuration of the call's, and fresh weights.

    Raises:
        GraphError: the layer cannot be rebuilt from its configuration.
    """
    layer, config = call.layer, {}
    try:
        with made_in_float32():
            if call.kind == "Lambda":
                return _clone_lambda(call)
            config = in_float32(layer.get_config())
            if "name" in config:
                config["name"] = call.name
            if is_frozen_norm(call):
                config["trainable"] = False
            if "activation" in config and hasattr(layer.activation, "__name__"):
                config["activation"] = plain_activation(layer.activation)
            clone = _layer_class(layer).from_config(config)
    except Exception as error:
        raise GraphError(
            "Every layer must be rebuildable from its get_config(), because the input "
            f"model is never modified. Received: layer={call.name!r} "
            f"({type(call.layer).__name__}): {error}. Add get_config() to it."
        ) from error
    clone.name = call.name  # some layers ignore the name of their configuration
    return clone


def plain_activation(activation: Any) -> Any:
    """The name of an activation if Keras has one by it, else the function itself."""
    name = activation_name(activation)
    return name if hasattr(keras.activations, name) else activation


def _clone_lambda(call: Call) -> Any:
    """A Lambda with the same functions, which no configuration restores safely.

    `get_config` is not called: it would list array arguments value by value.
    """
    layer = call.layer
    return keras.layers.Lambda(
        layer.function,
        getattr(layer, "_output_shape", None),
        layer.mask,
        dict(layer.arguments),
        name=call.name,
    )


def _layer_class(layer: Any) -> Any:
    if isinstance(layer, KernelPart):
        return getattr(keras.layers, layer.searchable_kind)
    return type(layer)


def copy_weights(graph: Graph, model: keras.Model) -> None:
    """Copies the graph's weights into the model's layers of the same names."""
    targets = {layer.name: layer for layer in model.layers}
    for call in graph.calls:
        source = call.layer
        if not getattr(source, "weights", None):
            continue
        target = targets[call.name]
        if is_searchable(source):
            target.kernel.assign(source.kernel)
            if source.use_bias:
                target.bias.assign(source.bias)
        else:
            target.set_weights(source.get_weights())
            if hasattr(target, "finalize_state"):  # Normalization uses derived values
                target.finalize_state()


def split_activations(graph: Graph) -> Graph:
    """Makes every activation that cannot be fused into its layer a separate call.

    Softmax, swish and the like inside a searchable layer become an `Activation` layer
    named `<layer>_activation`, so that the tensor between them can be quantized and
    the logits can be read. An activation that is a layer itself becomes a call of that
    layer. ReLU and ReLU6 stay inside: TFLite fuses them.
    """
    split = Graph(**{**graph.__dict__, "calls": [], "shapes": list(graph.shapes)})
    split.dtypes = list(graph.dtypes)
    taken = {call.name for call in graph.calls}
    made: dict[int, tuple[str, Any]] = {}
    for call in map(_unwrapped, graph.calls):
        if not is_searchable(call.layer) or function_of(call.activation).fused:
            split.calls.append(call)
            continue
        activation = _innermost(call.layer.activation)
        own = isinstance(activation, keras.layers.Layer)
        key = id(activation if own else call.layer)
        if key not in made:
            name = free_name(f"{call.name}_activation", taken)
            taken.add(name)
            made[key] = name, activation if own else _activation(activation, name)
        name, layer = made[key]
        output = call.outputs[0]
        middle = split.new_tensor(graph.shapes[output], graph.dtypes[output])
        split.calls.append(replace(call, outputs=(middle,), split=True))
        split.calls.append(unary_call(layer, name, middle, output))
    return split


def _activation(function: Any, name: str) -> Any:
    return keras.layers.Activation(plain_activation(function), name=name)


def _innermost(activation: Any) -> Any:
    """The function or layer inside `Activation` layers."""
    while type(activation).__name__ == ACTIVATION and is_stock(activation):
        activation = activation.activation
    return activation


def _unwrapped(call: Call) -> Call:
    """A call of `Activation(layer)` as one of that layer."""
    if call.kind != ACTIVATION or function_of(call.activation).fused:
        return call
    inner = _innermost(call.layer)
    return replace(call, layer=inner) if isinstance(inner, keras.layers.Layer) else call


def flat_copy(model: keras.Model, dtype: str = "float32") -> keras.Model:
    """A copy of a functional model, nested models inlined.

    Args:
        model: the model to copy; it is not changed.
        dtype: "bfloat16" lets the copy compute in it; its weights stay float32.
    """
    graph = read_graph(model)

    def make_layer(call: Call) -> Any:
        layer = clone_layer(call)
        if dtype == "bfloat16":
            layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
        return layer

    copy = rebuild(graph, model.name, make_layer)
    copy_weights(graph, copy)
    keep_loss(model, copy)
    return copy


def keep_loss(model: keras.Model, copy: keras.Model) -> None:
    """Records the loss of a compiled model in a copy, which is not compiled itself.

    The loss tells what the outputs mean: see `gmpq_tf.task.outputs_of`.
    """
    copy.loss = getattr(model, "loss", None)


def flattened(model: keras.Model) -> keras.Model:
    """The model itself, or, where it holds nested models, a copy with them inlined."""
    layers = getattr(model, "layers", ())  # what is no model is refused when it is read
    nested = any(functional_of(layer) is not None for layer in layers)
    return flat_copy(model) if nested else model


def logits_of(model: keras.Model) -> Any:
    """The symbolic tensor of a classifier's scores before its softmax or sigmoid.

    A softmax inside a nested model is found too.

    Raises:
        GraphError: the model has more than one output.
    """
    return scores_of(model)[0]


def scores_of(model: keras.Model) -> tuple[Any, str]:
    """`logits_of`, and the activation after it: "softmax", "sigmoid" or "linear".

    Raises:
        GraphError: the model has more than one output.
    """
    if len(model.outputs) != 1:
        raise GraphError(
            "A classifier must have one output. "
            f"Received: model={model.name!r} with {len(model.outputs)} outputs. "
            "Pass keras.Model(inputs, the_scores)."
        )
    return _scores_before(model.outputs[0])


def all_scores(model: keras.Model) -> list[tuple[Any, str]]:
    """`scores_of` of each output, in the order of `model.outputs`."""
    return [_scores_before(output) for output in model.outputs]


def _scores_before(output: Any) -> tuple[Any, str]:
    layer, node_index, index = output._keras_history
    node = layer._inbound_nodes[node_index]
    nested = functional_of(layer)
    if nested is not None:
        scores, name = _scores_before(nested.outputs[index])
        if name == "linear":
            return output, name
        inner = keras.Model(nested._inputs_struct, scores, name=f"{layer.name}_logits")
        return inner(*node.arguments.args, **node.arguments.kwargs), name
    kind, activation = (
        layer_kind(layer),
        activation_name(getattr(layer, "activation", None)),
    )
    passes = kind_of(kind).role is Role.IDENTITY or (
        kind == ACTIVATION and activation == "linear"
    )
    if passes and node.input_tensors:
        scores, name = _scores_before(node.input_tensors[0])
        return (output, name) if name == "linear" else (scores, name)
    own = kind_of(kind).function or ""
    if function_of(own).ends:
        if not is_over_last_axis(layer, len(output.shape)):
            return output, "linear"
        return node.input_tensors[0], own
    if not function_of(activation).ends:
        return output, "linear"
    if kind == ACTIVATION:
        return node.input_tensors[0], activation
    return _without_activation(layer)(node.input_tensors[0]), activation


def _without_activation(layer: Any) -> Any:
    """A layer that shares the weights of `layer` but omits its activation."""
    return LinearView(layer, name=f"{layer.name}_logits")


class LinearView(keras.layers.Layer):
    """Calls another layer with its activation switched off, sharing its weights."""

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs: Any) -> Any:
        """The other layer's output before its activation, of the same shape."""
        activation, self.layer.activation = self.layer.activation, None
        try:
            return self.layer(inputs)
        finally:
            self.layer.activation = activation
