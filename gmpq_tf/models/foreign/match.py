"""Match the tensors of a weight file with the variables of a model."""

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
# Which axis of PyTorch's kernel each axis of ours is: (out, in, height, width) there.
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
        axes: Which axis of the stored tensor each of ours is.
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
        layout: What the file calls its layers.

    Returns:
        The slots in the order of the model; where the layout has a bias that ours
        lacks, one for it too.
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
    """Returns the dense layers that other classes or another image size leave new.

    Args:
        model: The model to fill.
        slots: From `find_slots`.
        file: The stored tensors.

    Returns:
        Names of the dense layers from the first on whose kernel is stored for another
        number of classes (the last layer) or of pixels (one before it).
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
        name: Of the model, for the message.
        slots: Of the whole model.
        file: The stored tensors.

    Raises:
        WeightsError: It does; names the first such tensor and the nearest name.
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
        name: Of the model, for the message.
        slots: Of the layers to fill; every tensor is there.
        file: The stored tensors.

    Raises:
        WeightsError: It has one; names the first.
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
    """Returns a sentence that says which other model a file is of, or nothing."""
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

    What the source computes and ours cannot hold is folded into what ours has: another
    epsilon into gamma, the bias of a convolution into the moving mean.

    Args:
        model: The model to fill.
        layout: Of the file.
        slots: Of the layers to fill; names and shapes have been checked.
        file: The stored tensors.
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
    """Scales gamma so that gamma / sqrt(variance + epsilon) is the source's."""
    if epsilon is not None:
        # In float64, because variances may be as small as epsilon.
        variance: np.ndarray = values[layer.name, "moving_variance"].astype(float)
        ratio = np.sqrt((variance + layer.epsilon) / (variance + epsilon))
        values[layer.name, "gamma"] = values[layer.name, "gamma"] * ratio


def _fold_bias(layer: keras.layers.Layer, values: Values) -> None:
    """Subtracts a bias from the mean that the normalization after it subtracts."""
    bias = values.pop((layer.name, "bias"))
    normalization = (
        f"{layer.name}_bn"
        if layer.name.endswith("_shortcut")
        else layer.name.replace("conv", "bn")
    )
    mean = normalization, "moving_mean"
    values[mean] = values[mean] - bias


def assign(model: keras.Model, values: Values, reverse_channels: bool) -> None:
    """Gives a model its values.

    Args:
        model: The model to fill.
        values: From `convert`.
        reverse_channels: Whether the first convolution is for the reverse order of
            colours; it is turned round.
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
