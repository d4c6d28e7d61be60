"""A functional model without some of its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import Call, Graph, GraphError, is_searchable, read_graph
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layer_kinds import Role
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.channels import Channels, channels_of
from gmpq_tf.transform.rewrite import clone_layer, rebuild

Masks = Mapping[str, Sequence[bool]]


def prune_channels(model: keras.Model, keep: Masks) -> keras.Model:
    """Makes a smaller model: removes channels, and the weights that read them.

    The smaller model computes what `model` computes with the kernel weights that read
    the removed channels set to 0. If activations map 0 to 0, that is also what `model`
    computes with the kernels, biases and normalizations that make these channels set
    to 0.

        small = gmpq.prune_channels(model, {"conv1": [True, True, False, True]})

    Layers whose outputs are added lose the same channels; it is enough to name one of
    them. A depthwise convolution loses the channels that its input loses.

    Args:
        model: built functional model, float, channels last; it is not changed.
        keep: layer whose kernel makes channels -> a boolean for each of them; layers
            that are missing keep all, unless they belong to one that is named.

    Returns:
        An ordinary functional model with the same names of layers, nested models
        inlined and separable convolutions as two layers.

    Raises:
        GraphError: no layer of that name, a mask of another length, layers that belong
            together with different masks, a layer left without a channel, or channels
            that cannot be removed; the reason is given.
    """
    graph = read_graph(model)
    _check_float(graph)
    channels = channels_of(graph)
    gone = _dropped(channels, keep)

    def places(index: int) -> np.ndarray:
        return kept_places(channels.slots[index], gone)

    def make_layer(call: Call) -> Any:
        layer = clone_layer(call)
        if call.name in channels.producers:
            count = len(kept_places(channels.producers[call.name], gone))
            setattr(layer, "filters" if hasattr(layer, "filters") else "units", count)
        elif call.kind == "Reshape" and call.layer.target_shape[-1] != -1:
            size = len(places(call.outputs[0]))
            if size != len(channels.slots[call.outputs[0]]):
                layer.target_shape = (*call.layer.target_shape[:-1], size)
        return layer

    small = rebuild(graph, model.name, make_layer)
    for call in graph.calls:
        if getattr(call.layer, "weights", None):
            target = small.get_layer(call.name)
            _copy(call, target, places(call.inputs[0]), places(call.outputs[0]))
    return small


def kept_places(slots: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Indices of the `slots` [n] that are not in `gone`, ascending.

    Args:
        slots: slots of a tensor, as in `Channels`.
        gone: the slots that are removed.
    """
    return np.flatnonzero(~np.isin(slots, gone))


def channel_counts(keep: Masks) -> dict[str, int]:
    """Number of channels that masks keep: layer -> number."""
    return {name: int(np.sum(mask)) for name, mask in keep.items()}


def _dropped(channels: Channels, keep: Masks) -> np.ndarray:
    """The slots that masks remove, once they have been checked."""
    said: dict[int, tuple[str, bool]] = {}
    for name, mask in keep.items():
        own = _checked(channels, name, mask)
        for slot, stays in zip(channels.producers[name].tolist(), own, strict=True):
            before = said.setdefault(slot, (name, bool(stays)))
            if before[1] != stays:
                raise GraphError(
                    "Layers whose channels are added must keep the same ones. "
                    f"Received: keep[{before[0]!r}] and keep[{name!r}], which differ. "
                    "Give one mask for all, or name one of them."
                )
            why = channels.fixed.get(slot)
            if not stays and why is not None:
                raise GraphError(
                    "Only channels that all readers can do without are removed. "
                    f"Received: keep[{name!r}] without some, but {why}. "
                    "Leave the layer out."
                )
    gone: np.ndarray = np.array([slot for slot, (_, s) in said.items() if not s], int)
    for name, own in channels.producers.items():
        if own.size and not len(kept_places(own, gone)):
            raise GraphError(
                "Every layer must keep a channel. "
                f"Received: none of the {own.size} of {name!r}. Keep one at least."
            )
    return gone


def _checked(channels: Channels, name: str, mask: Any) -> np.ndarray:
    if name not in channels.producers:
        hint = suggest(str(name), channels.producers)
        if name in channels.readers:
            hint = "Its channels are those that it reads: name the layer before it."
        raise GraphError(
            "Channels are removed from a layer whose kernel makes them. "
            f"Received: keep[{name!r}]. {hint}"
        )
    found, count = np.asarray(mask), channels.producers[name].size
    if found.dtype != bool or found.shape != (count,):
        raise GraphError(
            f"A mask must have a boolean for each of the {count} channels of {name!r}. "
            f"Received: shape {found.shape} of {found.dtype}. Give such as "
            f"[True] * {count}."
        )
    return found


def _check_float(graph: Graph) -> None:
    for call in graph.calls:
        if hasattr(call.layer, "kernel_quantizer"):
            raise GraphError(
                "Channels are removed from float models. "
                f"Received: {call.name!r}, which is quantized. Prune the float model, "
                "and quantize what is left."
            )


def _copy(call: Call, target: Any, read: np.ndarray, made: np.ndarray) -> None:
    """Copies the weights of the channels that are left.

    Args:
        call: call of the layer in the whole model.
        target: the layer in the smaller model.
        read: indices of the input channels that are left.
        made: indices of the output channels that are left.
    """
    source = call.layer
    if is_searchable(source):
        axes = KERNEL_KINDS[call.kind].axes
        kernel = np.asarray(source.kernel)
        if target.kernel.shape[axes.index("i")] == len(read):  # not in groups
            kernel = np.take(kernel, read, axes.index("i"))
        if "o" in axes:
            kernel = np.take(kernel, made, axes.index("o"))
        target.kernel.assign(kernel)
        if source.use_bias:
            target.bias.assign(np.asarray(source.bias)[made])
        return
    by_channel = call.role is Role.NORM or call.kind == "PReLU"
    values = [
        np.take(w, read, -1) if by_channel and w.shape and w.shape[-1] > 1 else w
        for w in source.get_weights()
    ]
    target.set_weights(values)
    if hasattr(target, "finalize_state"):  # Normalization computes with copies
        target.finalize_state()
