"""The most probable policy within a budget: a multiple-choice knapsack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from gmpq_tf.budget import SLACK, BudgetError, Candidates, bit_ops


def most_probable_bits(
    probabilities: Mapping[str, tuple[np.ndarray, np.ndarray]],
    candidates: Candidates,
    macs: Mapping[str, int],
    budget: float | None = None,
) -> dict[str, tuple[int, int]]:
    """The policy of highest probability under the importances, within a budget.

    Maximizes `sum_k log pi_w[k] + log pi_a[k]`; without a budget that is the branch
    with the largest importance in each layer (section 3.3). With one, the bit
    operations must lie in `[(1 - SLACK) budget, budget]`, or as near below the budget
    as the space allows: a multiple-choice knapsack, solved exactly. What it leaves of
    the budget is then spent on the cheapest layers.

    Args:
        probabilities: (pi_w, pi_a) of each layer.
        candidates: bit-widths those belong to.
        macs: multiply-adds of each layer.
        budget: bit operations, or None.

    Returns:
        Layer name -> (weight bits, activation bits).
    """
    choices = {
        name: [
            ((w, a), float(np.log(pw + 1e-30) + np.log(pa + 1e-30)))
            for (w, pw), (a, pa) in product(
                zip(bits[0], probabilities[name][0], strict=True),
                zip(bits[1], probabilities[name][1], strict=True),
            )
        ]
        for name, bits in candidates.items()
    }
    if budget is None:
        return {n: max(pairs, key=lambda c: c[1])[0] for n, pairs in choices.items()}
    return spend_budget(knapsack(choices, macs, budget), candidates, macs, budget)


def spend_budget(
    bits: Mapping[str, tuple[int, int]],
    candidates: Candidates,
    macs: Mapping[str, int],
    budget: float,
) -> dict[str, tuple[int, int]]:
    """Raise bits, the cheapest step first, until no step fits the budget.

    Layers with few multiply-adds hardly feel the complexity risk, so their importances
    say little; what the budget leaves over gives them precision for nothing.
    """
    bits = dict(bits)
    while True:
        left = budget - sum(bit_ops(macs[n], *pair) for n, pair in bits.items())
        steps = [
            (bit_ops(macs[name], *new) - bit_ops(macs[name], *bits[name]), name, new)
            for name in bits
            for new in _raised(bits[name], candidates[name])
        ]
        affordable = [step for step in steps if step[0] <= left]
        if not affordable:
            return bits
        _, name, new = min(affordable)
        bits[name] = new


def _raised(
    pair: tuple[int, int], candidates: tuple[Sequence[int], Sequence[int]]
) -> list[tuple[int, int]]:
    """The pair with its weight bits, or its activation bits, at the next candidate."""
    weights = [w for w in candidates[0] if w > pair[0]][:1]
    inputs = [a for a in candidates[1] if a > pair[1]][:1]
    return [(w, pair[1]) for w in weights] + [(pair[0], a) for a in inputs]


def knapsack(
    choices: Mapping[str, list[tuple[tuple[int, int], float]]],
    macs: Mapping[str, int],
    budget: float,
) -> dict[str, tuple[int, int]]:
    """The choices of highest total value whose cost lies in the band of the budget.

    Args:
        choices: layer name -> (bit-widths, value) pairs, of which one is taken.
        macs: multiply-adds of each layer.
        budget: bit operations.

    Returns:
        Layer name -> bit-widths, with a cost in `[(1 - SLACK) budget, budget]`, or as
        near below the budget as the space allows.

    Raises:
        BudgetError: every choice costs more.
    """
    rows = [(n, pair, value) for n, pairs in choices.items() for pair, value in pairs]
    costs = np.array([bit_ops(macs[n], *pair) / budget for n, pair, _ in rows])
    values = np.array([value for _, _, value in rows])
    names = list(choices)
    one_each = np.array([[float(n == name) for n, _, _ in rows] for name in names])
    chosen = _solve(values, costs, one_each, 1 - SLACK)
    if chosen is None:  # the space has no policy that near: take the nearest below
        nearest = _solve(costs, costs, one_each, 0.0)
        if nearest is None:
            raise BudgetError(
                "No policy meets the budget. "
                f"Received: budget={budget / 1e9:.4g} GBOPs."
            )
        chosen = _solve(
            values, costs, one_each, float(costs[nearest].sum()) * (1 - SLACK)
        )
    return {rows[i][0]: rows[i][1] for i in np.flatnonzero(chosen)}


def _solve(
    values: np.ndarray, costs: np.ndarray, one_each: np.ndarray, low: float
) -> np.ndarray | None:
    """Mask of the best choices with total cost in [low, 1]; None without any."""
    for high in (1.0, 1.0 - 1e-5):  # the solver may overstep a limit by about 1e-6
        result = milp(
            -values,
            constraints=[
                LinearConstraint(costs[None], low, high),
                LinearConstraint(one_each, 1, 1),
            ],
            integrality=np.ones(len(values)),
            bounds=Bounds(0, 1),
            options={"time_limit": 60.0, "mip_rel_gap": 1e-6},
        )
        if result.x is None:
            return None
        chosen = np.round(result.x).astype(bool)
        if costs[chosen].sum() <= 1 + 1e-12:
            return chosen
    return None
