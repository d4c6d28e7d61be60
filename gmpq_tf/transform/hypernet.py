"""Functional model -> hypernet: every searchable layer holds several bit-widths."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from gmpq_tf.float_layers import float_layers, warn_uncounted
from gmpq_tf.graph import (
    Call,
    Graph,
    GraphError,
    check_float,
    free_name,
    is_searchable,
    read_graph,
)
from gmpq_tf.kernel_kinds import listed
from gmpq_tf.layers import MIXED_LAYERS
from gmpq_tf.layers.batch_norm import fused_norm
from gmpq_tf.layers.channel_gates import ChannelGates
from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION, relaxation_of
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer
from gmpq_tf.quantizers.input_quantizer import DEFAULT_INPUT_QUANTIZER
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    check_widths,
)
from gmpq_tf.space import SearchSpace
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.channels import OUTPUT, Channels, channels_of
from gmpq_tf.transform.exportable import warn_of_refusals
from gmpq_tf.transform.gates import split_gates
from gmpq_tf.transform.placement import input_signs
from gmpq_tf.transform.precision import in_float32
from gmpq_tf.transform.rewrite import (
    clone_layer,
    copy_weights,
    rebuild,
    split_activations,
)

ONLY = "it is the only one of its layer"


def build_hypernet(
    model: keras.Model,
    space: SearchSpace | None = None,
    input_quantizer: str = DEFAULT_INPUT_QUANTIZER,
    kernel_quantizer: str = DEFAULT_KERNEL_QUANTIZER,
    relaxation: str = DEFAULT_RELAXATION,
    gate_start: float | None = None,
    whole_layers: Collection[str] = (),
) -> keras.Model:
    """Builds the hypernet of section 3.3 from any functional Keras model.

    Each layer of `KERNEL_KINDS` becomes its Mixed layer (eq. 5); weights are copied,
    layer names kept, nested models inlined, the input model left as it is. A separable
    convolution becomes the two layers it computes, `<name>_depthwise` and
    `<name>_pointwise`.

    Args:
        model: a built functional or Sequential model, channels last.
        space: candidate bit-widths; the default is 2-4 with the layers of `end_names`
            at 8 bits.
        input_quantizer: a name in `INPUT_QUANTIZERS`.
        kernel_quantizer: a name in `KERNEL_QUANTIZERS`.
        relaxation: a name in `RELAXATIONS`: how layers compute with several bit-widths.
        gate_start: argument `start` of `ChannelGates`, of which a layer named
            `channel_gates` is added, with a gate for each channel that can be removed;
            None: no gates.
        whole_layers: layers whose channels get no gates.

    Returns:
        A functional model. Call `gmpq.calibrate` on it before use (`PolicySearch.fit`
        does).

    Raises:
        GraphError: a subclassed, unbuilt or quantized model, a layer that cannot be
            rebuilt, or gates where no channel can be removed.
        PolicyError: the space names a layer that the model lacks, or bits that the
            kernel quantizer does not support.
        ValueError: an unknown relaxation, or one that a quantizer does not support.
    """
    check_float(model)
    once = relaxation_of(relaxation).one_rounding
    graph = split_activations(read_graph(model))
    candidates = (space or SearchSpace()).candidates(model)
    check_widths(kernel_quantizer, {n: bits for n, (bits, _) in candidates.items()})
    signs = input_signs(graph)
    warn_unquantized(graph)
    warn_of_refusals(split_gates(graph))
    gates: ChannelGates | None = None
    if gate_start is not None:
        channels = gated_channels(graph, whole_layers, channels_of(read_graph(model)))
        name = free_name("channel_gates", {call.name for call in graph.calls})
        places, gates = make_gates(channels, gate_start, name)
    gated: dict[int, Any] = {}

    def on_operand(call: Call, index: int, tensor: Any) -> Any:
        if gates is None or not is_searchable(call.layer) or max(places[index]) < 0:
            return tensor
        if index not in gated:
            gated[index] = gates(tensor, places=places[index])
        return gated[index]

    def make_layer(call: Call) -> Any:
        if not is_searchable(call.layer):
            return fused_norm(clone_layer(call))
        weight_bits, activation_bits = candidates[call.name]
        quantizer = InputQuantizer(
            activation_bits,
            signs[call.name],
            input_quantizer,
            one_rounding=once,
            name="input_quantizer",
        )
        return make_quantized(
            MIXED_LAYERS, call, quantizer, weight_bits, kernel_quantizer, relaxation
        )

    hypernet = rebuild(graph, model.name, make_layer, on_operand)
    copy_weights(graph, hypernet)
    fit_kernel_steps(hypernet)
    return hypernet


def gated_channels(
    graph: Graph, whole_layers: Collection[str], removable: Channels
) -> Channels:
    """Returns the channels of a graph, where some layers must keep all of theirs.

    Args:
        graph: graph of the float model with activations split off.
        whole_layers: names of layers that keep all channels.
        removable: channels of the model itself, from which they will be removed.

    Raises:
        GraphError: there is no such layer, or no channel can be removed; the message
            gives the reasons.
    """
    channels = channels_of(graph)
    for name in whole_layers:
        if name not in channels.producers:
            raise GraphError(
                "A layer that keeps all channels must make some. "
                f"Received: whole_layers={list(whole_layers)!r}. "
                f"{suggest(name, channels.producers)}"
            )
        for slot in channels.producers[name].tolist():
            channels.fixed.setdefault(slot, "it is one of whole_layers")
    for name, slots in channels.producers.items():
        why = ONLY if slots.size == 1 else removable.why_fixed(name)
        if why is not None:
            for slot in slots.tolist():
                channels.fixed.setdefault(slot, why)
    fixed = {name: channels.why_fixed(name) for name in channels.producers}
    if all(fixed.values()):
        reasons = "; ".join(f"{name!r}: {why}" for name, why in fixed.items())
        raise GraphError(
            "Pruning needs a layer whose channels can be removed. "
            f"Received: none: {reasons}. Search bits alone."
        )
    expected = (None, OUTPUT, ONLY)
    kept = {name: why for name, why in fixed.items() if why not in expected}
    if kept:
        reasons = "; ".join(f"{name!r}: {why}" for name, why in kept.items())
        warnings.warn(f"These layers keep all channels: {reasons}.", stacklevel=4)
    return channels


def make_gates(
    channels: Channels, start: float, name: str
) -> tuple[list[tuple[int, ...]], ChannelGates]:
    """Makes the gates of all channels that can be removed.

    Args:
        channels: channels of a graph.
        start: argument of `ChannelGates`.
        name: name of the layer.

    Returns:
        The gate index of each channel of each tensor, -1 where there is none; and the
        layer.
    """
    made = np.concatenate(list(channels.producers.values()))
    free = np.unique(made[channels.free(made)])
    gate_of = {int(slot): gate for gate, slot in enumerate(free)}

    def numbered(slots: np.ndarray) -> tuple[int, ...]:
        return tuple(gate_of.get(slot, -1) for slot in slots.tolist()) or (-1,)

    producers = {name: numbered(own) for name, own in channels.producers.items()}
    readers = {name: numbered(own) for name, own in channels.readers.items()}
    places = [numbered(own) for own in channels.slots]
    return places, ChannelGates(producers, readers, start, name)


def make_quantized(
    classes: Mapping[str, Any],
    call: Call,
    input_quantizer: InputQuantizer,
    weight_bits: tuple[int, ...] | int,
    method: str,
    relaxation: str | None = None,
) -> Any:
    """A Mixed* or Quant* layer with the configuration of the call's stock layer."""
    cls = classes[call.kind]
    config = dict(in_float32(call.layer.get_config()), name=call.name)
    config["activation"] = call.activation  # `split_activations` has split off others
    input_quantizer.calibrate_first = True
    config["input_quantizer"] = input_quantizer
    config["kernel_quantizer"] = KernelQuantizer(
        weight_bits,
        method,
        cls.shared_axes,
        input_quantizer.one_rounding,
        name="kernel_quantizer",
    )
    if relaxation is not None:
        config["relaxation"] = relaxation
    return cls.from_config(config)


def fit_kernel_steps(model: keras.Model) -> None:
    """Sets every learned kernel step to that of least squared error on its kernel."""
    for layer in model.layers:
        quantizer = getattr(layer, "kernel_quantizer", None)
        if quantizer is not None:
            quantizer.fit_steps(layer.kernel)


def warn_unquantized(graph: Graph) -> None:
    """Names in one warning the layers with kernels that stay float.

    They count at 32 x 32 bits in costs and budgets. A second warning names those whose
    operations cannot be counted.
    """
    found = float_layers(graph)
    if found:
        warnings.warn(
            f"Only {listed()} are quantized; these layers stay "
            f"float: {', '.join(sorted(map(str, found)))}, at 32 x 32 bits.",
            stacklevel=3,
        )
    warn_uncounted(found)
