"""Layers in words that Keras 3 and tf_keras both know."""

from __future__ import annotations

from typing import Any

from gmpq_tf.export.errors import ExportError
from gmpq_tf.graph import Call, Graph
from gmpq_tf.spelling import suggest

ACTIVATIONS = ("linear", "relu", "relu6", "softmax", "sigmoid")
_WINDOW = "kernel_size strides padding dilation_rate use_bias activation"
_PENALTIES = "bias_regularizer bias_constraint"
# Kind of layer -> the arguments that Keras 3 and tf_keras both know, and both keep as
# attributes of the same names.
ARGUMENTS = {
    "Conv2D": f"filters groups {_WINDOW} kernel_regularizer kernel_constraint "
    f"{_PENALTIES}",
    "DepthwiseConv2D": f"depth_multiplier {_WINDOW} depthwise_regularizer "
    f"depthwise_constraint {_PENALTIES}",
    "Dense": "units use_bias activation kernel_regularizer kernel_constraint "
    f"{_PENALTIES}",
    "BatchNormalization": "axis momentum epsilon center scale beta_regularizer "
    "gamma_regularizer beta_constraint gamma_constraint",
    "Rescaling": "scale offset",
    "Add": "",
    "Concatenate": "axis",
    "MaxPooling2D": "pool_size strides padding",
    "AveragePooling2D": "pool_size strides padding",
    "GlobalMaxPooling2D": "keepdims",
    "GlobalAveragePooling2D": "keepdims",
    "Flatten": "",
    "Reshape": "target_shape",
    "Permute": "dims",
    "ZeroPadding2D": "padding",
    "Cropping2D": "cropping",
    "UpSampling2D": "size interpolation",
    "Activation": "activation",
    "ReLU": "max_value negative_slope threshold",
    "Softmax": "axis",
    "Dropout": "rate",
    "SpatialDropout2D": "rate",
    "GaussianNoise": "stddev",
    "GaussianDropout": "rate",
    "ActivityRegularization": "l1 l2",
    "Identity": "",
}
# Keras 3 functions on symbolic tensors, as layers.
OPERATIONS: dict[str, tuple[str, dict]] = {
    "Relu": ("ReLU", {}),
    "Relu6": ("ReLU", {"max_value": 6.0}),
    "Sigmoid": ("Activation", {"activation": "sigmoid"}),
}
MERGES = frozenset(["Add", "Concatenate"])
TRAINING = frozenset(  # kinds whose call takes `training`
    "BatchNormalization Dropout SpatialDropout2D GaussianNoise GaussianDropout".split()
)


def describe(call: Call, graph: Graph) -> tuple[str, dict[str, Any]]:
    """Kind and arguments of a stock layer, as both libraries know them.

    Args:
        call: the layer's use; the layer may be of either library.
        graph: its graph.

    Raises:
        ExportError: a layer that one of them, or TFLite, lacks.
    """
    kind, arguments = OPERATIONS.get(call.kind, (call.kind, {}))
    operands = len(call.inputs)
    if kind not in ARGUMENTS or (operands < 2 if kind in MERGES else operands != 1):
        raise ExportError(
            "Every layer must have a counterpart in tf_keras and in TFLite. "
            f"Received: layer={call.name!r} of kind {call.kind} with {operands} "
            f"tensors. {suggest(call.kind, [*ARGUMENTS, *OPERATIONS])} "
            "Replace the layer before quantize_model."
        )
    if call.kind in OPERATIONS:
        return kind, dict(arguments)
    return kind, {
        name: _argument(call, graph, name) for name in ARGUMENTS[kind].split()
    }


def _argument(call: Call, graph: Graph, name: str) -> Any:
    """An argument of a layer in plain values."""
    if getattr(call.layer, "data_format", "channels_last") == "channels_first":
        raise ExportError(
            "Channels must be last. "
            f"Received: layer={call.name!r} with data_format='channels_first'. "
            "Build the model with data_format='channels_last'."
        )
    if name == "activation":
        return _activation(call)
    if name == "target_shape":  # the function keras.ops.reshape calls it otherwise
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
    """Numbers, text, lists and tuples; penalties as {"class_name", "config"}."""
    if hasattr(value, "get_config"):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def make_layer(library: Any, kind: str, arguments: dict, call: Call) -> Any:
    """A new layer of a library, named as the call and frozen where its layer is.

    Args:
        library: what holds the class, such as `keras.layers`.
        kind: name of the class.
        arguments: of the class.
        call: gives name and `trainable`.

    Raises:
        ExportError: the library does not know the arguments.
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
    fixed = kwargs.get("training") if kind in TRAINING else None
    return {} if fixed is None else {"training": bool(fixed)}
