"""Describes layers by kinds and arguments that Keras 3 and tf_keras share."""

from __future__ import annotations

from typing import Any

from gmpq_tf.export.errors import ExportError
from gmpq_tf.graph import Call, Graph
from gmpq_tf.layer_kinds import KINDS, Role, kind_of, names

ACTIVATIONS = ("linear", "relu", "relu6", "softmax", "sigmoid")
# Kind of layer -> arguments that exist in Keras 3 and tf_keras, with attributes of the
# same names.
ARGUMENTS = {k.name: k.arguments for k in KINDS.values() if k.arguments is not None}
# Keras 3 operation on symbolic tensors -> equivalent layer and its arguments.
OPERATIONS: dict[str, tuple[str, dict]] = {
    k.name: (k.twin[0], dict(k.twin[1])) for k in KINDS.values() if k.twin is not None
}
MERGES = names(Role.SUM, Role.JOIN)


def describe(call: Call, graph: Graph) -> tuple[str, dict[str, Any]]:
    """Kind and arguments of a stock layer, valid in both libraries.

    Args:
        call: call of a layer of either library.
        graph: the graph of the call.

    Raises:
        ExportError: one of the libraries, or TFLite, lacks the layer.
    """
    kind, arguments = OPERATIONS.get(call.kind, (call.kind, {}))
    operands = len(call.inputs)
    if kind not in ARGUMENTS or (operands < 2 if kind in MERGES else operands != 1):
        raise ExportError(
            "Every layer must be of a kind that the exporter to TFMOT writes. "
            f"Received: layer={call.name!r} of kind {call.kind} on {operands} "
            f"tensor(s). Replace it before quantize_model{_elsewhere(call)}."
        )
    if call.kind in OPERATIONS:
        return kind, dict(arguments)
    return kind, {
        name: _argument(call, graph, name) for name in ARGUMENTS[kind].split()
    }


def _elsewhere(call: Call) -> str:
    """Text: the exporter that takes a kind of layer, where there is one."""
    known = call.role not in (Role.FLOAT, Role.HOST)
    return ", or use gmpq_tf.export.tflite.export_tflite, which takes it" * known


def _argument(call: Call, graph: Graph, name: str) -> Any:
    """An argument of a layer, as plain values."""
    if getattr(call.layer, "data_format", "channels_last") == "channels_first":
        raise ExportError(
            "Channels must be last. "
            f"Received: layer={call.name!r} with data_format='channels_first'. "
            "Build the model with data_format='channels_last'."
        )
    if name == "activation":
        return _activation(call)
    if name == "target_shape":  # keras.ops.reshape has another name for it
        return tuple(graph.shapes[call.outputs[0]][1:])
    value = _plain(getattr(call.layer, name))
    if name == "axis" and isinstance(value, list):  # as tf_keras keeps it
        return value[0]
    return value


def _activation(call: Call) -> str:
    if call.activation not in ACTIVATIONS:
        raise ExportError(
            f"An activation must be one of {', '.join(ACTIVATIONS)}. "
            f"Received: layer={call.name!r} with activation={call.activation!r}. "
            "Replace it before quantize_model."
        )
    return call.activation


def _plain(value: Any) -> Any:
    """Converts to numbers, text, lists, tuples; regularizers to a serialized dict."""
    if hasattr(value, "get_config"):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def make_layer(library: Any, kind: str, arguments: dict, call: Call) -> Any:
    """A new layer of a library, with the name and the `trainable` of the call's layer.

    Args:
        library: module with the class, such as `keras.layers`.
        kind: name of the class.
        arguments: arguments of the class.
        call: the call.

    Raises:
        ExportError: the library does not support the arguments.
    """
    try:
        layer = getattr(library, kind)(**arguments, name=call.name)
    except (TypeError, ValueError) as error:
        raise ExportError(
            "Keras 3 and tf_keras must both know a layer's arguments. "
            f"Received: layer={call.name!r}: {error}. Use stock regularizers and "
            "constraints."
        ) from error
    layer.trainable = getattr(call.layer, "trainable", True)
    return layer


def training_of(kind: str, kwargs: dict) -> dict[str, bool]:
    """The `training=` that a call was built with, if any."""
    fixed = kwargs.get("training") if kind_of(kind).trains else None
    return {} if fixed is None else {"training": bool(fixed)}
