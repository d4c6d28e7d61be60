"""Cross-layer equalization: scale channels so that both layers have equal ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import Call, Graph, is_identity, is_searchable, read_graph
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.rewrite import flat_copy
from gmpq_tf.transform.units import Unit, cap_of, units

ROUNDS, CLOSE = 50, 1e-3  # rounds over all pairs; largest |log2 s| of the last one
LARGEST_SCALE = 2.0**10
RELU6_CHOICES = ("skip", "relu")
# These layers move, pick or average values of a channel, so any scale passes through.
CHANNELWISE = frozenset(
    (
        "ZeroPadding2D Cropping2D MaxPooling2D GlobalMaxPooling2D AveragePooling2D "
        "GlobalAveragePooling2D UpSampling2D"
    ).split()
)


@dataclass(frozen=True)
class Equalization:
    """The report of `equalize`.

    Args:
        pairs: names of the two layers of each pair.
        skipped: layer name -> reason why its outputs are not scaled.
        uncapped: names of layers whose ReLU6 was replaced by a ReLU.
    """

    pairs: tuple[tuple[str, str], ...]
    skipped: Mapping[str, str]
    uncapped: tuple[str, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class ScaledPair:
    """Two layers between which each channel can be scaled by any positive number.

    Args:
        first: unit of the layer that writes the channels.
        second: layer that reads them.
    """

    first: Unit
    second: Any

    def scale(self) -> float:
        """Equalizes both layers once; returns the largest `|log2 s|` over channels.

        `s_i = sqrt(r1_i r2_i) / r2_i` (eq. 11): then both have the range
        `sqrt(r1_i r2_i)`.
        """
        first, second = output_ranges(self.first), input_ranges(self.second)
        live = (first > 0) & (second > 0)
        ratio = np.where(live, first, 1.0) / np.where(live, second, 1.0)
        s = np.clip(np.sqrt(ratio), 1 / LARGEST_SCALE, LARGEST_SCALE)
        norm = self.first.batch_norm
        layer = self.first.call.layer
        scaled = [norm.layer.gamma, norm.layer.beta] if norm else [layer.bias]
        if norm is None:
            kind = KERNEL_KINDS[_kind(layer)]
            kernel = np.asarray(layer.kernel, "float64")
            columns = kind.columns(kernel) / s
            layer.kernel.assign(kind.from_columns(columns, kernel.shape))
        for variable in scaled:
            if variable is not None:
                variable.assign(np.asarray(variable, "float64") / s)
        _scale_inputs(self.second, s)
        return float(np.abs(np.log2(s)).max())


def equalize(
    model: keras.Model, relu6: str = "skip"
) -> tuple[keras.Model, Equalization]:
    """Equalizes the weight ranges of consecutive layers, channel by channel.

    `ReLU(x / s) = ReLU(x) / s`, so the outputs of a layer can be divided by `s_i > 0`
    and the weights that read them multiplied by it; up to rounding the float network
    stays the same. Scales are computed pair by pair, in several rounds until they
    converge. A pair is a layer of `KERNEL_KINDS` with its BatchNormalization, ReLU (or
    no activation), pools and padding, and the only layer that reads the result.

    With one step for each output channel, the second layer and the range of the tensor
    in between benefit; a Dense layer, which has one step, benefits in both places.

    Args:
        model: a built functional or Sequential float model; not changed.
        relu6: "skip": a pair with a ReLU6 in between, whose cap would be scaled, is
            left out and reported. "relu": such ReLU6 are replaced by ReLU first, which
            changes the network where values exceed 6; they are reported too.

    Returns:
        A copy of the model, and a report, which also lists each layer of `KERNEL_KINDS`
        whose outputs are not scaled, with the reason.

    Raises:
        ValueError: `relu6` has another value.
        GraphError: the model is subclassed or not built.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction", ICCV 2019, section 4.1.
    """
    if relu6 not in RELU6_CHOICES:
        raise ValueError(
            f"relu6 must be 'skip' or 'relu'. Received: relu6={relu6!r}. "
            f"{suggest(str(relu6), RELU6_CHOICES)}"
        )
    copy = flat_copy(model)
    graph = read_graph(copy)
    pairs, skipped, capped = find_pairs(graph, relu6 == "relu")
    for unit in capped:
        _uncap(unit)
    for _ in range(ROUNDS):
        if max((pair.scale() for pair in pairs), default=0.0) < CLOSE:
            break
    names = tuple((p.first.call.name, p.second.name) for p in pairs)
    return copy, Equalization(names, skipped, tuple(u.call.name for u in capped))


def find_pairs(
    graph: Graph, uncap: bool = False
) -> tuple[list[ScaledPair], dict[str, str], list[Unit]]:
    """Finds pairs to scale.

    Returns:
        The pairs; layer name -> reason for other layers; units in pairs with a ReLU6.
    """
    uses = Counter(id(call.layer) for call in graph.calls)
    consumers = graph.consumers()
    pairs, skipped, capped = [], {}, []
    for unit in units(graph):
        if not is_searchable(unit.call.layer):
            continue
        reason = _no_first(unit, uses)
        second: Call | None = None
        if reason is None:
            second, reason = _reader(graph, unit, consumers, uses)
        cap = _cap(unit)
        if reason is None and cap is not None:
            reason = _capped(unit, cap, uncap)
        if reason is not None or second is None:
            skipped[unit.call.name] = reason or "nothing reads it"
            continue
        pairs.append(ScaledPair(unit, second.layer))
        if cap is not None:
            capped.append(unit)
    return pairs, skipped, capped


def _no_first(unit: Unit, uses: Mapping[int, int]) -> str | None:
    """The reason why the outputs of a unit cannot be scaled; None: they can."""
    layer, norm = unit.call.layer, unit.batch_norm
    if any(uses[id(call.layer)] > 1 for call in unit.calls):
        return "it is used more than once"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "its channels come first"
    if norm is not None and not norm.layer.scale:
        return f"{norm.name!r} has no scale"
    activation = unit.call.activation
    if activation not in ("linear", "relu", "relu6"):
        return f"its activation {activation!r} is neither 'relu' nor 'relu6'"
    return None


def _reader(
    graph: Graph,
    unit: Unit,
    consumers: Mapping[int, list[Call]],
    uses: Mapping[int, int],
) -> tuple[Call | None, str | None]:
    """The only layer that reads a unit, through channelwise calls.

    Returns:
        (call, None), or (None, reason) if there is no such layer.
    """
    index = unit.result
    while True:
        if index in graph.outputs:
            return None, "the model returns it"
        readers = consumers[index]
        if len(readers) != 1:
            return None, f"{len(readers)} calls read it"
        (reader,) = readers
        if is_searchable(reader.layer):
            return _checked_second(reader, uses)
        if not (is_identity(reader) or reader.kind in CHANNELWISE):
            return None, f"{reader.name!r} of kind {reader.kind} reads it"
        index = reader.outputs[0]


def _checked_second(
    call: Call, uses: Mapping[int, int]
) -> tuple[Call | None, str | None]:
    layer = call.layer
    if uses[id(layer)] > 1:
        return None, f"{call.name!r}, which reads it, is used more than once"
    if getattr(layer, "groups", 1) > 1:
        return None, f"{call.name!r}, which reads it, has groups"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None, f"{call.name!r}, which reads it, has its channels first"
    return call, None


def _cap(unit: Unit) -> float | None:
    """The largest value of the unit's activation; None: it has none."""
    if unit.activation is not None:
        return cap_of(unit.activation)
    if unit.call.activation == "relu6":
        return 6.0
    return None


def _capped(unit: Unit, cap: float, uncap: bool) -> str | None:
    """The reason why a ReLU with a cap prevents scaling; None: it can be removed."""
    if not uncap:
        return f"its ReLU has a cap at {cap:g}, which scaling would move"
    call = unit.activation or unit.call
    if call.kind != "ReLU" and not hasattr(call.layer, "activation"):
        return f"{call.name!r} is an operation, write it as keras.layers.ReLU(6.0)"
    return None


def _uncap(unit: Unit) -> None:
    """Removes the cap of a unit's ReLU, in place."""
    layer = unit.activation.layer if unit.activation else unit.call.layer
    if layer.__class__.__name__ == "ReLU":
        layer.max_value = None
    else:
        layer.activation = keras.activations.relu


def output_ranges(unit: Unit) -> np.ndarray:
    """Largest weight of each output channel, with BatchNormalization folded: [C]."""
    layer = unit.call.layer
    kernel = np.asarray(layer.kernel, "float64")
    found = np.abs(KERNEL_KINDS[_kind(layer)].columns(kernel)).max(axis=0)
    if unit.batch_norm is None:
        return found
    norm = unit.batch_norm.layer
    sigma = np.sqrt(np.asarray(norm.moving_variance, "float64") + norm.epsilon)
    return found * np.abs(np.asarray(norm.gamma, "float64")) / sigma


def input_ranges(layer: Any) -> np.ndarray:
    """Largest weight that reads each input channel: [channels]."""
    kernel = np.abs(np.asarray(layer.kernel, "float64"))
    axis = KERNEL_KINDS[_kind(layer)].axes.index("i")
    return np.moveaxis(kernel, axis, -1).reshape(-1, kernel.shape[axis]).max(axis=0)


def _scale_inputs(layer: Any, s: np.ndarray) -> None:
    """Multiplies the weights that read each input channel by `s` [channels]."""
    kernel = np.asarray(layer.kernel, "float64")
    axis = KERNEL_KINDS[_kind(layer)].axes.index("i")
    shape = [-1 if n == axis else 1 for n in range(kernel.ndim)]
    layer.kernel.assign(kernel * s.reshape(shape))


def _kind(layer: Any) -> str:
    return type(layer).__name__
