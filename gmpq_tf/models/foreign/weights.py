"""Builds networks with published or stored weights; no tensor may be left over."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.models.blocks import SMALL_IMAGE
from gmpq_tf.models.builtin import MODELS, build_model
from gmpq_tf.models.foreign.dense_as_conv import dense_as_conv
from gmpq_tf.models.foreign.files import (
    WeightFile,
    WeightsError,
    file_of_model,
    read_weight_file,
)
from gmpq_tf.models.foreign.layouts import LAYOUTS, Layout
from gmpq_tf.models.foreign.match import (
    Slots,
    assign,
    check_names,
    check_shapes,
    convert,
    find_slots,
    hint,
    new_classifier,
    stored_layers,
)
from gmpq_tf.models.ssd import BACKBONES, DENSE_SIDES
from gmpq_tf.spelling import lookup, suggest

PUBLISHED = "imagenet"  # Value of `weights` for published ones, instead of a path.


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with weights.

    Args:
        model: The network.
        notes: Sentences for the log: what was loaded, what was left new, which images
            the weights expect.
        new: Layers that were left at their initialization.
    """

    model: keras.Model
    notes: tuple[str, ...]
    new: tuple[str, ...] = ()


def build_pretrained(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    weights: str | Path,
    channels: str = "rgb",
    **options: Any,
) -> Pretrained:
    """Builds a built-in model and gives it weights.

    Only the classifier may differ: for another number of classes it stays as
    initialized. In VGG-16 the first dense layer depends on the image size, so for
    another size all dense layers stay as initialized.

    Args:
        name: A name in `MODELS`; a detector takes its own weights, or those of its
            backbone's classifier.
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        weights: `"imagenet"`: those that keras.applications publishes; or a file: see
            `read_weight_file`.
        channels: Order of colours that the weights in a file expect, `"rgb"` or
            `"bgr"`; the model reads red, green, blue in any case.
        **options: Arguments of that model's own function.

    Returns:
        The model, and sentences for its user.

    Raises:
        WeightsError: No such weights, a tensor is missing, left over or of another
            shape, or the download failed.
        ValueError: There is no such model.
    """
    lookup(MODELS, name, "model")
    _check_channels(channels)
    published = str(weights) == PUBLISHED
    if name in BACKBONES and (published or _is_of_another(weights, name)):
        given = (name, input_shape, num_classes, weights, channels)
        return _with_backbone(*given, **options)
    file = _download(name, options) if published else read_weight_file(weights)
    layout = _choose_layout(name, file)
    file = _renamed_by_order(file, layout)
    model = build_model(name, input_shape, num_classes, **{**layout.options, **options})
    slots = find_slots(model, layout)
    check_names(name, slots, file)
    new = new_classifier(model, slots, file)
    kept = {key: slot for key, slot in slots.items() if key[0] not in new}
    check_shapes(name, kept, file)
    order = layout.channels if published else channels
    values = convert(model, layout, kept, file)
    assign(model, values, reverse_channels=order == "bgr")
    return Pretrained(model, _notes(layout, file, slots, new, order), tuple(new))


def _is_of_another(weights: str | Path, name: str) -> bool:
    return read_weight_file(weights).model_name != name


def _with_backbone(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    weights: str | Path,
    channels: str,
    **options: Any,
) -> Pretrained:
    """Builds a detector whose backbone has the weights of a classifier."""
    classifier = BACKBONES[name]
    known = inspect.signature(MODELS[classifier]).parameters
    shared = {key: value for key, value in options.items() if key in known}
    # Dense layers depend on the size of the classifier's images; they are not used
    # unless they become convolutions.
    side = DENSE_SIDES.get(name, SMALL_IMAGE)
    shape = (side, side, input_shape[2])
    found = build_pretrained(
        classifier, shape, num_classes, weights, channels, **shared
    )
    padded = any(layer.name.endswith("_depthwise_pad") for layer in found.model.layers)
    if padded and "padding" in inspect.signature(MODELS[name]).parameters:
        options["padding"] = "symmetric"
    model = build_model(name, input_shape, num_classes, **options)
    sources = {layer.name: layer for layer in found.model.layers if layer.weights}
    new, cut, follows = [], [], True
    for layer in filter(lambda each: each.weights, model.layers):
        source = sources.get(layer.name)
        values = None if source is None else source.get_weights()
        if isinstance(source, keras.layers.Dense):
            # What follows one that is new was not trained on its outputs.
            values, (kernel, bias) = None, source.get_weights()
            if follows and layer.name not in found.new:
                values = dense_as_conv(kernel, bias, layer.kernel.shape)
            follows = values is not None
            cut += [layer.name] if follows else []
        shapes = [tuple(w.shape) for w in layer.weights]
        if values is None or [value.shape for value in values] != shapes:
            new.append(layer.name)
        else:
            layer.set_weights(values)
    left = f"Left at a new initialization: {', '.join(new)}."
    notes = [note for note in found.notes if not note.startswith("Left at")]
    if cut:
        text = f"Of {', '.join(cut)} every third row and column, every fourth channel."
        notes.append(text)
    return Pretrained(model, (*notes, left), tuple(new))


def _check_channels(channels: str) -> None:
    if channels not in ("rgb", "bgr"):
        raise ValueError(
            "`channels` must be 'rgb' or 'bgr'. "
            f"Received: channels={channels!r}. {suggest(channels, ('rgb', 'bgr'))}"
        )


def _download(name: str, options: Mapping[str, Any]) -> WeightFile:
    """Lets keras.applications fetch the weights that it publishes."""
    layouts = [x for x in LAYOUTS.get(name, ()) if x.library == "keras"]
    if not layouts:
        known = [n for n, rows in LAYOUTS.items() if rows[0].library == "keras"]
        raise WeightsError(
            "weights='imagenet' needs a model that keras.applications publishes. "
            f"Received: model={name!r}; published: {', '.join(known)}. "
            "Pass other weights as a file: weights=FILE."
        )
    network = _network(layouts[0])
    arguments = {key: options[key] for key in ("alpha",) if key in options}
    try:
        model = network(weights=PUBLISHED, **arguments)
    except Exception as error:  # Keras raises a bare Exception where a download fails.
        remedy = "pass it as a file: weights=FILE (--weights=FILE)"
        if layouts[0].channels == "bgr":
            remedy += " with channels='bgr' (--weights_channels=bgr)"
        raise WeightsError(
            f"The weights of {layouts[0].source} could not be fetched. "
            f"Received: {' '.join(str(error).split())[:300]}. "
            f"Download that file where there is a network and {remedy}."
        ) from error
    return file_of_model(model, PUBLISHED)


def _network(layout: Layout) -> Any:
    return getattr(keras.applications, layout.source.rsplit(".", 1)[-1])


def _choose_layout(name: str, file: WeightFile) -> Layout:
    """Returns the layout whose names a file uses: another library's or our own."""
    rows = [x for x in LAYOUTS.get(name, ()) if x.library == file.library]
    if file.library == "torchvision":
        if not rows:
            raise WeightsError(
                f"A state dict must be of a model with weights in torchvision. "
                f"Received: {file.origin} for model={name!r}.{hint(name, file)}"
            )
        return rows[0]
    stored = set(stored_layers(file))
    for layout in rows:
        theirs, ours = set(layout.layers.values()), set(layout.layers)
        same_count = file.ordered and len(stored) == len(theirs)
        if same_count or len(theirs & stored) > len(ours & stored):
            return layout
    return _own_layout(name, file)


def _own_layout(name: str, file: WeightFile) -> Layout:
    if file.model_name in MODELS and file.model_name != name:
        raise WeightsError(
            "Weights must be of the model they are loaded into. "
            f"Received: {file.origin}, of {file.model_name!r}, for model={name!r}. "
            f"Use model={file.model_name!r}."
        )
    padded = any(layer.endswith("_depthwise_pad") for layer in file.layers)
    options = {"padding": "symmetric"} if padded and name == "mobilenet_v2" else {}
    return Layout(f"gmpq_tf {name}", {}, epsilon=None, scaling="", options=options)


def _renamed_by_order(file: WeightFile, layout: Layout) -> WeightFile:
    """Renames the layers of a Keras 2 file by order, as Keras itself matches them.

    The file published for MobileNetV2 has layer names that keras.applications no longer
    uses.
    """
    stored, theirs = stored_layers(file), set(layout.layers.values())
    if not file.ordered or len(stored) != len(theirs) or set(stored) == theirs:
        return file
    reference = _network(layout)(weights=None, input_shape=(32, 32, 3), classes=2)
    order = [layer.name for layer in reference.layers if layer.weights]
    names = dict(zip(stored, order, strict=True))
    parts = {name: name.rpartition("/") for name in file.tensors}
    tensors = {
        f"{names[layer]}/{variable}": file.tensors[name]
        for name, (layer, _, variable) in parts.items()
    }
    return dataclasses.replace(file, tensors=tensors)


def _notes(
    layout: Layout,
    file: WeightFile,
    slots: Slots,
    new: Sequence[str],
    channels: str,
) -> tuple[str, ...]:
    notes = [f"Weights: {file.origin}, laid out as {layout.source}."]
    if new:
        slot = slots[new[0], "kernel"]
        notes.append(
            f"Left at a new initialization: {', '.join(new)} ({slot.name} is stored as "
            f"{file.tensors[slot.name].shape}, needed as {slot.shape})."
        )
    if layout.scaling:
        notes.append(f"Weights published for it expect {layout.scaling}.")
        if layout.channels != channels:
            notes.append(
                f"They also expect channels={layout.channels!r} "
                f"(--weights_channels={layout.channels})."
            )
    return tuple(notes)
