"""Matches the tensors of a weight file with the variables of a model."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from gmpq_tf.models.foreign.files import WeightFile, WeightsError
from gmpq_tf.models.foreign.layouts import LAYOUTS, Layout
from gmpq_tf.spelling import suggest

_IN_TORCHVISION = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The axis of PyTorch's kernel (out, in, height, width) for each axis of ours.
_AXES_IN_TORCHVISION = {
    "Conv2D": (2, 3, 1, 0),
    "DepthwiseConv2D": (2, 3, 0, 1),
    "Dense": (1, 0),
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a variable lies in a weight file.

    Args:
        name: Name of the stored tensor.
        axes: The axis of the stored tensor for each axis of our variable.
        shape: Shape that the stored tensor must have.
    """

    name: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]


# Keys: name of our layer, name of its variable.
Slots = dict[tuple[str, str], Slot]
Values = dict[tuple[str, str], np.ndarray]


def find_slots(model: keras.Model, layout: Layout) -> Slots:
    """Returns where each variable of a model lies in a file.

    Args:
        model: Built by one of `MODELS`.
        layout: Names of the layers in the file.

    Returns:
        The slots in the order of the model, with further ones for biases that the file
        has and our convolutions lack.
    """
    slots = {}
    for layer in model.layers:
        shapes = {v.name: tuple(v.shape) for v in layer.weights}
        if layout.conv_bias and isinstance(layer, keras.layers.Conv2D):
            shapes["bias"] = (layer.filters,)
        for variable, shape in shapes.items():
            slots[layer.name, variable] = _slot(layer, variable, shape, layout)
    return slots


def _slot(
    layer: keras.layers.Layer, variable: str, shape: tuple[int, ...], layout: Layout
) -> Slot:
    theirs = layout.layers.get(layer.name, layer.name)
    if layout.library != "torchvision":
        return Slot(f"{theirs}/{variable}", tuple(range(len(shape))), shape)
    axes = tuple(range(len(shape)))
    if variable == "kernel":
        axes = _AXES_IN_TORCHVISION[type(layer).__name__]
    stored = tuple(shape[axes.index(axis)] for axis in range(len(shape)))
    return Slot(f"{theirs}.{_IN_TORCHVISION[variable]}", axes, stored)


def new_classifier(model: keras.Model, slots: Slots, file: WeightFile) -> list[str]:
    """Returns the dense layers that stay new because of other classes or image size.

    Args:
        model: The model to fill.
        slots: From `find_slots`.
        file: The stored tensors.

    Returns:
        Names of all dense layers from the first one whose stored kernel is for another
        number of classes (the last layer) or of pixels (an earlier layer).
    """
    dense = [x.name for x in model.layers if isinstance(x, keras.layers.Dense)]
    for index, name in enumerate(dense):
        slot = slots[name, "kernel"]
        stored = file.tensors.get(slot.name, np.empty(slot.shape))
        kept = 0 if name == dense[-1] else 1  # our axis that must agree
        same_rank = stored.ndim == len(slot.shape)
        if same_rank and stored.shape != slot.shape:
            axis = slot.axes[kept]
            return dense[index:] if stored.shape[axis] == slot.shape[axis] else []
    return []


def check_names(name: str, slots: Slots, file: WeightFile) -> None:
    """Refuses a file that lacks a tensor or has one too many.

    Args:
        name: Name of the model, for the message.
        slots: Slots of the whole model.
        file: The stored tensors.

    Raises:
        WeightsError: The names differ; the message has the first and the nearest name.
    """
    needed = [slot.name for slot in slots.values()]
    missing = [x for x in needed if x not in file.tensors]
    extra = [x for x in file.tensors if x not in set(needed)]
    if missing:
        text = f"lacks {missing[0]!r} ({len(missing)} of {len(needed)} tensors)"
        nearest = suggest(missing[0], extra or file.tensors)
    elif extra:
        text = f"has {extra[0]!r}, which it lacks ({len(extra)} such tensors)"
        nearest = suggest(extra[0], needed)
    else:
        return
    raise WeightsError(
        f"Weights of {name!r} must hold its tensors and no others. Received: "
        f"{file.origin}, which {text}. {_shortened(nearest)}{hint(name, file)}"
    )


def _shortened(sentence: str, length: int = 200) -> str:
    return sentence if len(sentence) <= length else f"{sentence[:length]}..."


def check_shapes(name: str, slots: Slots, file: WeightFile) -> None:
    """Refuses a file with a tensor of another shape.

    Args:
        name: Name of the model, for the message.
        slots: Slots of the layers to fill; their tensors must be in the file.
        file: The stored tensors.

    Raises:
        WeightsError: A shape differs; the message names the first such tensor.
    """
    for slot in slots.values():
        shape = file.tensors[slot.name].shape
        if shape != slot.shape:
            raise WeightsError(
                f"Weights of {name!r} must have its shapes. Received: {file.origin}, "
                f"whose {slot.name!r} is {shape} and should be {slot.shape}. Build "
                "the model with the stem, width and channels that the weights are for "
                f"(such as stem='imagenet', --stem=imagenet).{hint(name, file)}"
            )


def hint(name: str, file: WeightFile) -> str:
    """Returns a sentence that names the model a file belongs to, or an empty text."""
    stored = set(stored_layers(file))
    for other, layouts in LAYOUTS.items():
        for layout in layouts:
            same = stored == set(layout.layers.values())
            if same and layout.library == file.library and other != name:
                return f" These are tensors of {layout.source}: use model={other!r}."
    return ""


def convert(
    model: keras.Model, layout: Layout, slots: Slots, file: WeightFile
) -> Values:
    """Returns the values of our variables.

    Where the source has parameters that our layers lack, they are folded into others: a
    different epsilon into gamma, the bias of a convolution into the moving mean.

    Args:
        model: The model to fill.
        layout: Layout of the file.
        slots: Slots of the layers to fill; names and shapes have been checked.
        file: The stored tensors.

    Returns:
        (layer, variable) -> float32 array in the shape of our variable.
    """
    values = {
        key: file.tensors[slot.name].transpose(slot.axes) for key, slot in slots.items()
    }
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            _match_epsilon(layer, layout.epsilon, values)
        elif layout.conv_bias and isinstance(layer, keras.layers.Conv2D):
            _fold_bias(layer, values)
    return values


def _match_epsilon(
    layer: keras.layers.Layer, epsilon: float | None, values: Values
) -> None:
    """Scales gamma so that gamma / sqrt(variance + epsilon) equals the source's."""
    if epsilon is not None:
        # In float64, because variances may be as small as epsilon.
        variance: np.ndarray = values[layer.name, "moving_variance"].astype(float)
        ratio = np.sqrt((variance + layer.epsilon) / (variance + epsilon))
        values[layer.name, "gamma"] = values[layer.name, "gamma"] * ratio


def _fold_bias(layer: keras.layers.Layer, values: Values) -> None:
    """Subtracts a convolution's bias from the moving mean of the next normalization."""
    bias = values.pop((layer.name, "bias"))
    normalization = (
        f"{layer.name}_bn"
        if layer.name.endswith("_shortcut")
        else layer.name.replace("conv", "bn")
    )
    mean = normalization, "moving_mean"
    values[mean] = values[mean] - bias


def assign(model: keras.Model, values: Values, reverse_channels: bool) -> None:
    """Assigns values to the variables of a model.

    Args:
        model: The model to fill.
        values: From `convert`.
        reverse_channels: Whether the first kernel expects colours in reverse order
            (BGR); its input channels are then reversed.
    """
    if reverse_channels:
        first = next(x for x in model.layers if isinstance(x, keras.layers.Conv2D))
        kernel = first.name, "kernel"
        values = {**values, kernel: values[kernel][:, :, ::-1]}
    variables = {(x.name, v.name): v for x in model.layers for v in x.weights}
    for key, value in values.items():
        variables[key].assign(value)


def stored_layers(file: WeightFile) -> dict[str, None]:
    """Returns the layers that have tensors, in the order of the file."""
    mark = "/" if file.library == "keras" else "."
    return dict.fromkeys(name.rpartition(mark)[0] for name in file.tensors)
