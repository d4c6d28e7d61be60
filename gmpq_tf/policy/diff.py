"""How two policies differ: layer by layer, and in the rank of their bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gmpq_tf.align import align
from gmpq_tf.bits import LAYER_KEYS, LayerBits, PolicyError
from gmpq_tf.spelling import suggest

Layers = Mapping[str, LayerBits]
HEADER = ("layer", "weight bits", "activation bits")


@dataclass(frozen=True)
class PolicyDiff:
    """The differences between two policies; `bool(diff)` tells whether there are any.

    Args:
        shared: number of layers that both name.
        changed: layer name -> (bits before, bits after), of shared layers that differ.
        only_before: layers that only the first policy names.
        only_after: layers that only the second policy names.
    """

    shared: int
    changed: Mapping[str, tuple[LayerBits, LayerBits]]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.only_before or self.only_after)

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} of {self.shared} shared layers differ"]
        if self.changed:
            rows = [_changed_row(name, *pair) for name, pair in self.changed.items()]
            lines.append(align(HEADER, rows))
        if self.only_before:
            lines.append(f"only before: {', '.join(self.only_before)}")
        if self.only_after:
            lines.append(f"only after: {', '.join(self.only_after)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of two policies over the layers both name.

    Args:
        layers: number of those layers.
        weight_bits: -1 to 1; NaN: not defined, see `rank_correlation`.
        activation_bits: -1 to 1 or NaN, like `weight_bits`.
    """

    layers: int
    weight_bits: float
    activation_bits: float

    def __str__(self) -> str:
        return (
            f"rank correlation over {self.layers} shared layers: "
            f"weight bits {_format_correlation(self.weight_bits)}, "
            f"activation bits {_format_correlation(self.activation_bits)}"
        )


def diff_layers(before: Layers, after: Layers) -> PolicyDiff:
    """Compares the bits of two policies layer by layer.

    Args:
        before: layer name -> bits.
        after: layer name -> bits.

    Returns:
        The differences, in the order of the layers of `before`, then of `after`.
    """
    shared = [name for name in before if name in after]
    return PolicyDiff(
        shared=len(shared),
        changed={
            name: (before[name], after[name])
            for name in shared
            if before[name] != after[name]
        },
        only_before=tuple(name for name in before if name not in after),
        only_after=tuple(name for name in after if name not in before),
    )


def rank_correlation(before: Layers, after: Layers) -> RankCorrelation:
    """Correlates the ranks of two policies' bits over the layers both name.

    Spearman's rho is Pearson's correlation of the ranks, where tied layers get the mean
    of their ranks (bits have few values, so most are tied). It is NaN with fewer than
    two shared layers, or if either policy gives all of them the same bits, because then
    there is no order to compare.

    Args:
        before: layer name -> bits.
        after: layer name -> bits.

    Returns:
        The correlations of weight bits and of activation bits.

    Raises:
        PolicyError: no layer is shared.
    """
    shared = [name for name in before if name in after]
    if not shared:
        first = next(iter(before))
        raise PolicyError(
            "Policies must share layers to be correlated. "
            f"Received: {first!r} and {len(before) - 1} more against {len(after)} "
            f"others. {suggest(first, after)} Where only names differ, call "
            "policy.rename first."
        )
    pairs = [(before[name], after[name]) for name in shared]
    return RankCorrelation(
        layers=len(shared),
        weight_bits=_spearman([(b.weight_bits, a.weight_bits) for b, a in pairs]),
        activation_bits=_spearman(
            [(b.activation_bits, a.activation_bits) for b, a in pairs]
        ),
    )


def _spearman(pairs: list[tuple[int, int]]) -> float:
    from scipy.stats import spearmanr  # here, because it takes a second to import

    before, after = zip(*pairs, strict=True)
    if len(set(before)) < 2 or len(set(after)) < 2:
        return math.nan
    return float(spearmanr(before, after).statistic)


def _changed_row(name: str, before: LayerBits, after: LayerBits) -> tuple[str, ...]:
    return (name, *(_arrow(vars(before)[key], vars(after)[key]) for key in LAYER_KEYS))


def _arrow(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"


def _format_correlation(value: float) -> str:
    return "undefined (equal bits)" if math.isnan(value) else f"{value:.3f}"
