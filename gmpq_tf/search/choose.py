"""From values to policies: the best within the limits, the next ones, and how sure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from gmpq_tf.budget import SLACK, BudgetError, Candidates
from gmpq_tf.limits import Limit, exceeded
from gmpq_tf.search.knapsack import Problem, knapsack, spend_budget
from gmpq_tf.search.values import FREE, Bits, Bonds, Valued, Values, total

# Differences of this many standard errors or more are seldom due to chance.
DECIDED = 2.0


@dataclass(frozen=True)
class Margin:
    """How far the best policy lies above the next.

    Args:
        difference: difference of their values, or of their risks; at least 0.
        error: standard error of the difference, paired by image; None where values
            are not measured, 0 where the images do not differ.
        following: the next policy; None: there is no other.
        odds: whether values without an error are logarithms of probabilities.
    """

    difference: float
    error: float | None
    following: Bits | None
    odds: bool = True

    @property
    def in_errors(self) -> float | None:
        """The difference in standard errors; None where it has none."""
        if self.error is None or self.following is None:
            return None
        if self.error == 0:
            return math.inf if self.difference > 0 else 0.0
        return self.difference / self.error

    @property
    def decided(self) -> bool:
        """Whether the best policy is better by two standard errors or more."""
        if self.following is None:
            return True
        return self.in_errors is not None and self.in_errors >= DECIDED

    def __str__(self) -> str:
        """One line for the log and the report, with the remedy where it needs one."""
        if self.following is None:
            return "No other policy keeps the budgets."
        if self.error is None and self.odds:
            odds = math.exp(min(-self.difference, 0.0))
            return (
                f"The next policy is {100 * odds:.3g} % as probable as the chosen one. "
                "Importances have no measured error: --finalists compares policies."
            )
        if self.error is None:
            return (
                f"The value of the chosen policy is {self.difference:.3g} above that "
                "of the next. These values have no measured error: --finalists "
                "compares policies."
            )
        assert self.in_errors is not None
        text = (
            f"The chosen policy is {self.in_errors:.2g} standard errors better than "
            "the next"
        )
        if self.decided:
            return f"{text}."
        return (
            f"{text}: the search has not decided between the two. Measure on more "
            "images, or compare more finalists."
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; infinite errors as None."""
        errors = self.in_errors
        finite = errors is not None and math.isfinite(errors)
        return {
            "difference": self.difference,
            "error": self.error,
            "in_errors": errors if finite else None,
            "decided": self.decided,
            "text": str(self),
        }


def choose(
    values: Values,
    candidates: Candidates,
    limits: Sequence[Limit],
    bonds: Bonds = FREE,
    spends: bool = False,
) -> dict[str, tuple[int, int]]:
    """The policy of highest value within the limits.

    Args:
        values: values of the choices that may be taken.
        candidates: (weight bits, activation bits) each layer may take.
        limits: limits of the costs; () for none.
        bonds: constraints and added values between choices.
        spends: whether it must spend the first limit; see `Valued`.

    Returns:
        Layer name -> (weight bits, activation bits).

    Raises:
        BudgetError: no policy keeps all limits.
    """
    return shortlist(values, candidates, limits, 1, bonds, spends)[0]


def shortlist(
    values: Values,
    candidates: Candidates,
    limits: Sequence[Limit],
    count: int,
    bonds: Bonds = FREE,
    spends: bool = False,
) -> list[dict[str, tuple[int, int]]]:
    """The policies of highest value within the limits, the best first.

    Found by `knapsack`; then each spends what is left of the budget, where values are
    measured only on bits that lower no value.

    Args:
        values: values of the choices that may be taken.
        candidates: (weight bits, activation bits) each layer may take.
        limits: limits of the costs; () for none.
        count: how many; fewer, if there are fewer.
        bonds: constraints and added values between choices.
        spends: as for `choose`.

    Returns:
        Distinct policies, each as from `choose`.

    Raises:
        BudgetError: no policy keeps all limits.
    """
    allowed, problem, limits, first = posed(values, candidates, limits, bonds, spends)

    def worth(bits: Bits) -> float:
        return total(values, bits) + bonds.worth(bits)

    def spent(bits: Bits) -> dict[str, tuple[int, int]]:
        return spent_on(bits, allowed, limits, bonds, None if spends else worth)

    masks = [_mask(problem, first)]
    least = smallest_share(limits, first) if spends else 0.0
    policies = [spent(first)]
    while len(policies) < count and len(masks) < 20 * count:
        mask = problem.solve(problem.values, least, masks)
        if mask is None:
            break
        masks.append(mask)
        bits = spent(problem.bits(mask))
        if bits not in policies:
            policies.append(bits)
    return policies


def posed(
    values: Values,
    candidates: Candidates,
    limits: Sequence[Limit],
    bonds: Bonds = FREE,
    spends: bool = False,
) -> tuple[dict, Problem, list[Limit], dict[str, tuple[int, int]]]:
    """The candidates that have values, their knapsack, its limits and its solution.

    Raises:
        BudgetError: no policy keeps all limits.
    """
    allowed = {
        name: (_valued(pair[0], values[name][0]), _valued(pair[1], values[name][1]))
        for name, pair in candidates.items()
    }
    choices = {
        name: [
            (
                (w, a),
                values[name][0][w]
                + values[name][1][a]
                + bonds.between((name, 0, w), (name, 1, a)),
            )
            for w, a in product(*pair)
            if bonds.permits(name, (w, a))
        ]
        for name, pair in allowed.items()
    }
    felt = [each for each in limits if not each.table.is_fixed(candidates)]
    problem = Problem(choices, felt, bonds.pairs)
    try:
        first = knapsack(choices, felt, bonds.pairs, spends)
        return allowed, problem, felt, first
    except BudgetError as error:
        if not bonds.allowed:
            raise
        raise BudgetError(
            "No policy keeps the budgets in which the activations of a layer have the "
            f"bits of its weights. Received: {', '.join(map(str, limits))}. Raise the "
            "budget, give weights and activations the same candidates, or pass "
            "activations='measured'."
        ) from error


def smallest_share(limits: Sequence[Limit], first: Bits) -> float:
    """Share of the first limit that the policies after the best must spend.

    Args:
        limits: limits of the costs; () for none.
        first: the best policy that must; it may spend less, as then may the others.
    """
    if not limits:
        return 0.0
    spent = limits[0].table.of_layers(first) / limits[0].for_layers
    return min(spent, 1.0) * (1 - SLACK) if spent < 1 - SLACK else 1 - SLACK


def spent_on(
    bits: Bits,
    candidates: Candidates,
    limits: Sequence[Limit],
    bonds: Bonds = FREE,
    worth: Callable[[Bits], float] | None = None,
) -> dict[str, tuple[int, int]]:
    """A policy with more bits where budgets and, if given, its value allow them."""
    if not limits:
        return dict(bits)
    return spend_budget(bits, candidates, limits, bonds.allowed, worth)


def uniform_bits(
    candidates: Candidates, limits: Sequence[Limit]
) -> dict[str, tuple[int, int]] | None:
    """The uniform policy that spends most of the limits; None if no uniform one fits.

    A tensor with one candidate keeps it. If that is one side of a layer only (the first
    layer's input, say), the other side has the uniform width or its widest candidate.
    """
    free: list[list[set[int]]] = [[], []]
    for pair in candidates.values():
        for own, side in zip(free, pair, strict=True):
            if len(side) > 1:
                own.append(set(side))
    half = [n for n, pair in candidates.items() if min(map(len, pair)) == 1]
    shared = [set.intersection(*own) if own else {0} for own in free]
    kept: list[dict[str, tuple[int, int]]] = []
    for width in sorted(product(*shared), key=lambda p: (p[0] * p[1], p)):
        bits = {
            name: (_only_or(weights, width[0]), _only_or(inputs, width[1]))
            for name, (weights, inputs) in candidates.items()
        }
        most = {n: (max(candidates[n][0]), max(candidates[n][1])) for n in half}
        kept += [b for b in (bits, bits | most) if not exceeded(limits, b)]
    if not kept:
        return None
    if not limits:
        return kept[-1]
    return max(kept, key=lambda bits: limits[0].table.of_layers(bits))


def margin_of(
    valued: Valued, candidates: Candidates, limits: Sequence[Limit], best: Bits
) -> Margin:
    """How far a chosen policy lies above the next, from the strategy's measurements.

    Args:
        valued: what the strategy returned.
        candidates: (weight bits, activation bits) each layer may take.
        limits: limits that both policies keep.
        best: the policy that `choose` returned.
    """
    if valued.ranked:
        return margin_of_ranked(valued.ranked)
    near = shortlist(valued.values, candidates, limits, 2, valued.bonds, valued.spends)
    others = [bits for bits in near if bits != best]
    if not others:
        return Margin(0.0, None, None)
    gap = max(valued.total(best) - valued.total(others[0]), 0.0)
    if valued.samples is None:
        return Margin(gap, None, others[0], valued.odds)
    each = total(valued.samples, best) - total(valued.samples, others[0])
    return Margin(gap, standard_error(each), others[0])


def margin_of_ranked(ranked: Sequence[tuple[Bits, np.ndarray]]) -> Margin:
    """As `margin_of`, for policies with their risks [images], the best first."""
    if len(ranked) < 2:
        return Margin(0.0, None, None)
    each = ranked[1][1] - ranked[0][1]
    return Margin(max(float(each.mean()), 0.0), standard_error(each), ranked[1][0])


def standard_error(samples: np.ndarray) -> float:
    """Standard error of the mean of samples [n]; 0 for one sample (unknown)."""
    if samples.size < 2:
        return 0.0
    return float(samples.std(ddof=1) / math.sqrt(samples.size))


def _only_or(candidates: Sequence[int], width: int) -> int:
    return candidates[0] if len(candidates) == 1 else width


def _valued(candidates: Sequence[int], values: Mapping[int, float]) -> tuple[int, ...]:
    """Candidates that may be taken, ascending."""
    return tuple(sorted(set(candidates) & set(values)))


def _mask(problem: Problem, bits: Bits) -> np.ndarray:
    return np.array([bits[name] == pair for name, pair, _ in problem.rows])
