"""How sure each single choice of a policy is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmpq_tf.budget import Candidates
from gmpq_tf.limits import Limit
from gmpq_tf.search.choose import (
    DECIDED,
    Margin,
    posed,
    smallest_share,
    standard_error,
)
from gmpq_tf.search.values import Bits, Valued, total

SIDES = ("weights", "activations")
NAMED = 6  # choices that the log lists


@dataclass(frozen=True)
class Decisions:
    """How sure each choice of a policy is, compared with the best policy without it.

    Args:
        bits: the policy.
        margins: layer -> (margin of its weight bits, of its activation bits); None
            where there is one candidate.
    """

    bits: Bits
    margins: Mapping[str, tuple[Margin | None, Margin | None]]

    def each(self) -> Iterator[tuple[str, str, int, Margin]]:
        """(layer, "weights" or "activations", bits, margin) of each real choice."""
        for name, pair in self.margins.items():
            for side, width, margin in zip(SIDES, self.bits[name], pair, strict=True):
                if margin is not None:
                    yield name, side, width, margin

    def __str__(self) -> str:
        """Text for the log and the report; empty where there was nothing to choose."""
        found = list(self.each())
        open_ = [each for each in found if not each[3].decided]
        if not found:
            return ""
        if any(m.error is None and m.following is not None for *_, m in found):
            return _least_sure(open_)
        text = f"Decided, by {DECIDED:g} standard errors or more: "
        text += f"{len(found) - len(open_)} of {len(found)} choices"
        if not open_:
            return f"{text}."
        open_.sort(key=lambda each: each[3].in_errors or 0.0)
        listed = ", ".join(
            f"{_named(*each[:3])} ({each[3].in_errors:.2g})" for each in open_[:NAMED]
        )
        more = f" and {len(open_) - NAMED} more" if len(open_) > NAMED else ""
        return (
            f"{text}. Not decided: {listed}{more}; measure on more images, or compare "
            "finalists."
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; infinite errors as None."""
        layers: dict[str, Any] = {name: {} for name in self.margins}
        for name, side, width, margin in self.each():
            errors = margin.in_errors
            finite = errors is not None and math.isfinite(errors)
            following = margin.following and margin.following[name]
            layers[name][side] = {
                "bits": width,
                "instead": following and following[SIDES.index(side)],
                "difference": margin.difference,
                "in_errors": errors if finite else None,
                "decided": margin.decided,
            }
        return {"text": str(self), "layers": layers}


def decisions_of(
    valued: Valued, candidates: Candidates, limits: Sequence[Limit], best: Bits
) -> Decisions:
    """How sure each choice of a chosen policy is, from the strategy's measurements.

    The policy is compared with the best one within the limits that has another
    bit-width there (and other choices, where the budget requires it). If the strategy
    compared whole policies, the best of those with another bit-width is taken.

    Args:
        valued: what the strategy returned.
        candidates: (weight bits, activation bits) each layer may take.
        limits: limits that all policies keep.
        best: the chosen policy.
    """
    if valued.ranked:
        return decisions_of_ranked(valued.ranked, candidates)
    _, problem, felt, first = posed(
        valued.values, candidates, limits, valued.bonds, valued.spends
    )
    least = smallest_share(felt, first) if valued.spends else 0.0

    def against(name: str, which: int) -> Margin | None:
        if len(candidates[name][which]) == 1:
            return None
        forbidden = np.array(
            [
                n == name and pair[which] == best[name][which]
                for n, pair, _ in problem.rows
            ]
        )
        mask = problem.solve(problem.values, least, forbidden=forbidden)
        if mask is None:
            return Margin(0.0, None, None)
        other = problem.bits(mask)
        gap = valued.total(best) - valued.total(other)
        error = None
        if valued.samples is not None:
            each = total(valued.samples, best) - total(valued.samples, other)
            error = standard_error(each)
        return Margin(max(gap, 0.0), error, other, valued.odds)

    return Decisions(
        dict(best), {name: (against(name, 0), against(name, 1)) for name in candidates}
    )


def decisions_of_ranked(
    ranked: Sequence[tuple[Bits, np.ndarray]], candidates: Candidates
) -> Decisions:
    """As `decisions_of`, for policies with their risks [images], the best first."""
    best, risk = ranked[0]

    def against(name: str, which: int) -> Margin | None:
        if len(candidates[name][which]) == 1:
            return None
        for bits, other in ranked[1:]:
            if bits[name][which] != best[name][which]:
                each = other - risk
                gap = max(float(each.mean()), 0.0)
                return Margin(gap, standard_error(each), bits)
        return Margin(0.0, None, None)

    return Decisions(
        dict(best), {name: (against(name, 0), against(name, 1)) for name in candidates}
    )


def _least_sure(choices: list[tuple[str, str, int, Margin]]) -> str:
    """Text on choices whose values have no measured error, the least sure first."""
    choices.sort(key=lambda each: each[3].difference)
    if choices[0][3].odds:
        how = "how probable the best policy without them is beside the chosen one"
        said = [f"{100 * math.exp(-m.difference):.3g} %" for *_, m in choices]
    else:
        how = "how far the value of the best policy without them lies below"
        said = [f"{m.difference:.3g}" for *_, m in choices]
    listed = ", ".join(
        f"{_named(*each[:3])} ({text})"
        for each, text in zip(choices[:NAMED], said, strict=False)
    )
    return f"Least sure, with {how}: {listed}."


def _named(layer: str, side: str, width: int) -> str:
    return f"{layer} {'WA'[SIDES.index(side)]}{width}"
