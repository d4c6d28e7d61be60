"""What a layer of Keras is: its kind, its activation, whether its bits are searched."""

from __future__ import annotations

from typing import Any

from gmpq_tf.layer_kinds import ACTIVATION, KINDS, Role

SEARCHABLE_KINDS = tuple(k.name for k in KINDS.values() if k.role is Role.KERNEL)
# Packages whose classes and functions can be identified by their names.
LIBRARIES = "gmpq_tf keras tf_keras tensorflow tensorflow_model_optimization".split()
# Other names of activations, in Keras and in TensorFlow.
ACTIVATION_NAMES = {
    "swish": "silu",
    "hard_swish": "hard_silu",
    "softmax_v2": "softmax",
    "identity": "linear",
}


def layer_kind(layer: Any) -> str:
    """Kind of a layer: the class it declares to behave as, else its own class name.

    For a user's own class it is the name with its module, because a class with the name
    of a Keras class may do something else.
    """
    kinds = (getattr(layer, name, None) for name in ("searchable_kind", "graph_kind"))
    cls = type(layer)
    known = is_stock(layer) or cls.__module__.split(".")[0] in LIBRARIES
    own = cls.__name__ if known else f"{cls.__module__}.{cls.__name__}"
    return next(filter(None, kinds), own)


def activation_name(activation: Any) -> str:
    """Name of an activation, the same for a function, a layer and their synonyms.

    Args:
        activation: a function, a layer, or None; of Keras or TensorFlow.

    Returns:
        Such as "relu", "relu6" or "linear". For a user's own function its name with the
        module; for a layer with other settings than the function, its class name.
    """
    if activation is None:
        return "linear"
    if not hasattr(activation, "__name__"):
        return _name_of_activation_layer(activation)
    name, module = activation.__name__, getattr(activation, "__module__", None) or ""
    if module.split(".")[0] not in LIBRARIES:
        return f"{module}.{name}"
    return ACTIVATION_NAMES.get(name, name)


def _name_of_activation_layer(layer: Any) -> str:
    kind = layer_kind(layer)
    if kind == ACTIVATION:
        return activation_name(layer.activation)
    if kind == "ReLU":
        names = {None: "relu", 6.0: "relu6"}
        return names.get(relu_cap(layer), kind) if is_plain_relu(layer) else kind
    return "softmax" if kind == "Softmax" and layer.axis == -1 else kind


def is_over_last_axis(layer: Any, rank: int) -> bool:
    """Whether a softmax of tensors of a rank normalizes along their last axis."""
    axis = getattr(layer, "axis", -1)
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    return axes in ([-1], [rank - 1])


def is_plain_relu(layer: Any) -> bool:
    """Whether a ReLU layer has neither a slope below zero nor a threshold."""
    return not layer.negative_slope and not layer.threshold


def relu_cap(layer: Any) -> float | None:
    """The largest value of a ReLU layer; None: it has none."""
    return None if layer.max_value is None else float(layer.max_value)


def is_searchable(layer: Any) -> bool:
    """True for the layers of `KERNEL_KINDS`, whose bits are searched."""
    if getattr(layer, "searchable_kind", None):
        return True
    return is_stock(layer) and type(layer).__name__ in SEARCHABLE_KINDS


def is_stock(layer: Any) -> bool:
    """True for layers and operations of Keras itself, known by their class."""
    return type(layer).__module__.split(".")[0] in ("keras", "tf_keras")
