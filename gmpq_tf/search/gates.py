"""Channel gates in a search: options, risk, and the channels that remain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.graph import is_searchable
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layers.channel_gates import START, ChannelGates
from gmpq_tf.search.checks import check_number, check_whole
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.risks import Risk, Step
from gmpq_tf.transform.rewrite import flat_copy


@dataclass(frozen=True)
class GatesConfig:
    """How channels are pruned while bits are searched.

    Args:
        information: Weight of the mean information of channels, in nats; about the loss
            that removing channels may cost in total. A larger weight removes more.
        gate_start: log(variance / squared mean) of each gate before training, below 0.
        channel_multiple: The number of channels kept is raised to a multiple of this,
            by also keeping those whose gates are nearest to open.
        whole_layers: Layers that keep all channels.
    """

    information: float = 0.1
    gate_start: float = START
    channel_multiple: int = 1
    whole_layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_number("information", self.information, 0.0)
        check_whole("channel_multiple", self.channel_multiple, 1)
        if not -100 <= self.gate_start < 0:
            raise StrategyError(
                "gate_start must be from -100 to below 0, where gates are open. "
                f"Received: gate_start={self.gate_start!r}."
            )
        if self.whole_layers is not None:
            object.__setattr__(self, "whole_layers", tuple(self.whole_layers))


class Information(Risk):
    """The mean of `log(1 + mu^2 / sigma^2)` over all gates, in nats.

    Args:
        gates: gates of the hypernet.
        strength: weight of the risk.

    Source: Dai et al., "Compressing Neural Networks using the Variational Information
    Bottleneck", ICML 2018, eq. 8.
    """

    name = "information"

    def __init__(self, gates: ChannelGates, strength: float) -> None:
        self.gates, self.strength = gates, strength

    def weight(self, step: Step) -> float:
        """Returns the weight, and notes the share of open channels."""
        step.noted["open_channels"] = tf.reduce_mean(self.gates.open())
        return self.strength

    def value(self, step: Step) -> tf.Tensor:
        """Returns the mean over the gates, a scalar."""
        return tf.reduce_mean(self.gates.information())


def trained_model(model: keras.Model, hypernet: keras.Model) -> keras.Model:
    """Returns the float model with the weights of a trained hypernet.

    The means of the gates are multiplied into the kernels that read the channels.

    Args:
        model: the float model, nested models inlined; it is not changed.
        hypernet: the trained hypernet with gates, built from the model.
    """
    copy = flat_copy(model)
    (gates,) = (each for each in hypernet.layers if isinstance(each, ChannelGates))
    means: np.ndarray = np.append(np.asarray(gates.mean), 1.0)  # -1 is the last
    for layer in copy.layers:
        if not layer.weights:
            continue
        source = hypernet.get_layer(layer.name)
        if not is_searchable(layer):
            layer.set_weights(source.get_weights())
            continue
        axes = KERNEL_KINDS[type(layer).__name__].axes
        kernel = np.asarray(source.kernel)
        read = means[np.array(gates.given["readers"][layer.name])]
        if kernel.shape[axes.index("i")] == len(read):  # not in groups, without gates
            shape = [-1 if axis == "i" else 1 for axis in axes]
            kernel = kernel * read.reshape(shape)
        layer.kernel.assign(kernel)
        if layer.use_bias:
            layer.bias.assign(source.bias)
    return copy


def kept_channels(
    gates: ChannelGates, multiple: int = 1
) -> dict[str, tuple[bool, ...]]:
    """Returns which channels stay: those with open gates, at least one per layer.

    Args:
        gates: trained gates.
        multiple: the number of channels of a layer is raised to a multiple of this, or
            to all of its channels, by those whose gates are nearest to open.

    Returns:
        Layer -> mask of its channels, for the layers that lose one; see
        `prune_channels`.
    """
    ratios = np.asarray(gates.log_ratios())
    kept = ratios < 0
    producers: Mapping[str, Any] = gates.given["producers"]
    gated = {n: np.array(own) for n, own in producers.items() if min(own) >= 0}
    changed = True
    while changed:  # layers may share a part of their gates
        changed = False
        for own in gated.values():
            count = int(kept[own].sum())
            wanted = min(max(math.ceil(count / multiple), 1) * multiple, own.size)
            closed = own[~kept[own]]
            more = closed[np.argsort(ratios[closed], kind="stable")][: wanted - count]
            kept[more] = True
            changed |= len(more) > 0
    masks = {n: tuple(map(bool, kept[own])) for n, own in gated.items()}
    return {name: mask for name, mask in masks.items() if not all(mask)}
