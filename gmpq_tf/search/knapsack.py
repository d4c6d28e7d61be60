"""The most probable policy within its budgets: a multiple-choice knapsack.

Each layer takes one of its choices; the sum of their values is maximized, and the sum
of their costs stays within the limits. This integer linear program is solved exactly
(SciPy's HiGHS), which takes milliseconds for a network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from gmpq_tf.budget import SLACK, Candidates
from gmpq_tf.limits import Limit, no_policy

Pair = tuple[int, int]
Choices = Mapping[str, list[tuple[Pair, float]]]
# Two choices (layer, 0 for its weights or 1 for its activations, bits) -> value.
PairValues = Mapping[tuple[tuple[str, int, int], tuple[str, int, int]], float]


def most_probable_bits(
    probabilities: Mapping[str, tuple[np.ndarray, np.ndarray]],
    candidates: Candidates,
    limits: Sequence[Limit] = (),
) -> dict[str, Pair]:
    """The policy of highest probability under the importances, within its budgets.

    Maximizes `sum_k log pi_w[k] + log pi_a[k]`; without a budget that is the branch
    with the largest importance in each layer (section 3.3). With budgets, every cost
    must be within its limit, and the first one at most 3 % below it (or as near below
    as the space allows). What is left of the budgets is then spent on the layers where
    more bits cost least.

    Args:
        probabilities: (pi_w, pi_a) of each layer, [candidates] each.
        candidates: the bit-widths that these belong to.
        limits: limits of the costs; () for none.

    Returns:
        Layer name -> (weight bits, activation bits).

    Raises:
        BudgetError: no policy keeps all limits.
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
    limits = [each for each in limits if not each.table.is_fixed(candidates)]
    if not limits:
        return {n: max(pairs, key=lambda c: c[1])[0] for n, pairs in choices.items()}
    return spend_budget(knapsack(choices, limits), candidates, limits)


def spend_budget(
    bits: Mapping[str, Pair],
    candidates: Candidates,
    limits: Sequence[Limit],
    allowed: Mapping[str, Sequence[Pair]] | None = None,
    worth: Callable[[Mapping[str, Pair]], float] | None = None,
) -> dict[str, Pair]:
    """Raises bits, the cheapest step of the first budget first, until none fits.

    Layers with few multiply-adds hardly feel the complexity risk, so their importances
    say little; the rest of the budget gives them more precision at no cost. Of measured
    values those are equal where fewer bits were better, which can only be chance.

    Args:
        bits: a policy that keeps the limits.
        candidates: (weight bits, activation bits) each layer may take.
        limits: at least one.
        allowed: layer -> pairs it may take; a layer that is missing may take any.
        worth: policy -> its value, which no step may lower; None: it is not asked.

    Returns:
        Layer name -> (weight bits, activation bits), nowhere fewer than before.
    """
    bits, allowed = dict(bits), allowed or {}
    while True:
        left = [each.for_layers - each.table.of_layers(bits) for each in limits]
        steps = [
            (_added(limits, name, bits[name], new), name, new)
            for name in bits
            for new in _raised(bits[name], candidates[name], allowed.get(name))
        ]
        affordable = [
            (added[0], name, new)
            for added, name, new in steps
            if all(cost <= rest for cost, rest in zip(added, left, strict=True))
            and (worth is None or worth({**bits, name: new}) >= worth(bits))
        ]
        if not affordable:
            return bits
        _, name, new = min(affordable)
        bits[name] = new


def _added(limits: Sequence[Limit], name: str, old: Pair, new: Pair) -> list[float]:
    """What changing a layer from one pair of bits to another adds to each cost."""
    return [each.table.at(name, *new) - each.table.at(name, *old) for each in limits]


def _raised(
    pair: Pair,
    candidates: tuple[Sequence[int], Sequence[int]],
    allowed: Sequence[Pair] | None,
) -> list[Pair]:
    """The next wider pairs: weight bits, or activation bits, at the next candidate.

    Where pairs are restricted, the narrowest allowed pair that is not narrower.
    """
    if allowed is not None:
        wider = [
            p for p in allowed if p != pair and p[0] >= pair[0] and p[1] >= pair[1]
        ]
        return sorted(wider, key=sum)[:1]
    weights = [w for w in candidates[0] if w > pair[0]][:1]
    inputs = [a for a in candidates[1] if a > pair[1]][:1]
    return [(w, pair[1]) for w in weights] + [(pair[0], a) for a in inputs]


def knapsack(
    choices: Choices,
    limits: Sequence[Limit],
    pairs: PairValues | None = None,
    spends: bool = True,
) -> dict[str, Pair]:
    """The choices of highest total value that keep all limits.

    Args:
        choices: layer name -> (bit-widths, value) pairs, of which one is taken.
        limits: limits of the costs.
        pairs: value that is added if two choices of different layers are both taken.
        spends: whether they must spend the first limit; see `Valued`.

    Returns:
        Layer name -> bit-widths. If they must spend it, the cost of the first limit
        lies in `[(1 - SLACK) limit, limit]`, or as near below it as the space allows.

    Raises:
        BudgetError: no choices keep all limits.
    """
    problem = Problem(choices, limits, pairs)
    chosen = problem.solve(problem.values, 1 - SLACK if spends else 0.0)
    if chosen is None:  # no policy is that near to the limit: find the nearest below
        nearest = problem.solve(problem.costs[0], 0.0)
        if nearest is None:
            raise no_policy(limits, blocking(choices, limits))
        least = float(problem.costs[0][nearest].sum()) * (1 - SLACK)
        chosen = problem.solve(problem.values, least)
        chosen = nearest if chosen is None else chosen
    return problem.bits(chosen)


def check_limits(candidates: Candidates, limits: Sequence[Limit]) -> None:
    """Refuses limits that no policy of a space keeps together.

    Args:
        candidates: (weight bits, activation bits) each layer may take.
        limits: limits, each of which some policy keeps.

    Raises:
        BudgetError: no policy keeps all; the message says which ones to raise.
    """
    limits = [each for each in limits if not each.table.is_fixed(candidates)]
    if len(limits) > 1:
        pairs = {n: list(product(*bits)) for n, bits in candidates.items()}
        choices = {n: [(pair, 0.0) for pair in each] for n, each in pairs.items()}
        problem = Problem(choices, limits)
        if problem.solve(problem.values, 0.0) is None:
            raise no_policy(limits, blocking(choices, limits))


def blocking(choices: Choices, limits: Sequence[Limit]) -> list[Limit]:
    """The limits that conflict: without one of these all others can be kept."""
    found = []
    for left_out in limits:
        problem = Problem(choices, [each for each in limits if each is not left_out])
        if problem.solve(problem.values, 0.0) is not None:
            found.append(left_out)
    return found


class Problem:
    """Choices and limits as arrays, for an integer linear program.

    The first variables, `rows`, are 0 or 1: whether a choice is taken. A value of two
    choices needs the product of two such variables, which is made linear: for each pair
    of tensors there is one more variable per product, and the sum of the products over
    one tensor's bits must equal the other tensor's variable. The products then are 0
    or 1 by themselves, and the relaxation is tighter than with the usual inequalities.

    Args:
        choices: layer name -> (bit-widths, value) pairs.
        limits: limits of the costs.
        pairs: value that is added if two choices of different layers are both taken.
    """

    def __init__(
        self,
        choices: Choices,
        limits: Sequence[Limit],
        pairs: PairValues | None = None,
    ) -> None:
        self.rows = [(n, *choice) for n, own in choices.items() for choice in own]
        products, self.sums = _products(self.rows, pairs or {})
        self.values = np.array([value for _, _, value in self.rows] + products)
        # Costs as shares of what each limit leaves for the searched layers.
        self.costs = np.array(
            [
                [each.table.at(n, *pair) / each.for_layers for n, pair, _ in self.rows]
                for each in limits
            ]
        ).reshape(len(limits), len(self.rows))
        self.one_each = np.array(
            [[float(n == name) for n, _, _ in self.rows] for name in choices]
        )

    def bits(self, chosen: np.ndarray) -> dict[str, Pair]:
        """Layer name -> bit-widths, from a mask of the choices, [rows]."""
        return {self.rows[i][0]: self.rows[i][1] for i in np.flatnonzero(chosen)}

    def solve(
        self,
        values: np.ndarray,
        least: float,
        without: Sequence[np.ndarray] = (),
        forbidden: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """Mask of the best choices within the limits, bool [rows]; None: there is none.

        Args:
            values: value of each variable, [rows] or [columns]; their sum is maximized.
            least: share of the first limit that must be spent, 0 to 1.
            without: masks [rows] of solutions that must not be found again.
            forbidden: mask of choices that may not be taken, [rows].
        """
        rows, columns = len(self.rows), len(self.values)
        low = np.full(len(self.costs), -np.inf)
        low[:1] = least
        most = np.ones(columns)
        if forbidden is not None:
            most[:rows] -= forbidden
        kinds = np.zeros(columns)
        kinds[:rows] = 1  # integers; products are whole if the choices are
        for high in (1.0, 1.0 - 1e-5):  # the solver may exceed a limit by about 1e-6
            constraints = [LinearConstraint(_wide(self.one_each, columns), 1, 1)]
            if len(self.costs):
                costs = _wide(self.costs, columns)
                constraints.insert(0, LinearConstraint(costs, low, high))
            if len(without):
                other = len(self.one_each) - 1
                masks = _wide(np.array(without), columns)
                constraints.append(LinearConstraint(masks, -np.inf, other))
            if self.sums is not None:
                constraints.append(LinearConstraint(self.sums, 0, 0))
            result = milp(
                -_wide(_scaled(values)[None], columns)[0],
                constraints=constraints,
                integrality=kinds,
                bounds=Bounds(0, most),
                options={"time_limit": 60.0, "mip_rel_gap": 1e-6},
            )
            if result.x is None:
                return None
            chosen = np.round(result.x[:rows]).astype(bool)
            if (self.costs[:, chosen].sum(axis=1) <= 1 + 1e-12).all():
                return chosen
        return None


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values times a power of two, so that the largest is 512 to 1024.

    The solver takes differences of 1e-6 for none, and values below 1e-7 for 0.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not 0 < largest < np.inf:
        return values
    return np.ldexp(values, 10 - np.frexp(largest)[1])


def _wide(matrix: np.ndarray, columns: int) -> np.ndarray:
    """A matrix [n, rows] padded with zeros for the products, [n, columns]."""
    return np.pad(matrix, ((0, 0), (0, columns - matrix.shape[1])))


def _products(
    rows: Sequence[tuple[str, Pair, float]], pairs: PairValues
) -> tuple[list[float], Any]:
    """Variables for the products of choices: their values and their equations.

    Args:
        rows: (layer, bit-widths, value) of each choice.
        pairs: as in `Problem`; pairs within one layer are skipped, since they are part
            of the layer's values.

    Returns:
        Values [products], and a sparse matrix [equations, rows + products] whose
        product with the variables must be 0; None without products.
    """
    tensors = {(own[0][:2], own[1][:2]) for own in pairs if own[0][0] != own[1][0]}
    values: list[float] = []
    entries: list[tuple[int, int, float]] = []
    equations = 0
    for both in sorted(tensors):
        taken = [_taken(rows, *tensor) for tensor in both]
        first = len(rows) + len(values)
        for b in taken[0]:
            for c in taken[1]:
                values.append(pairs.get(((*both[0], b), (*both[1], c)), 0.0))
        products = np.arange(first, len(rows) + len(values))
        grid = products.reshape(len(taken[0]), len(taken[1]))
        for own, lines in zip(taken, (grid, grid.T), strict=True):
            for places, line in zip(own.values(), lines, strict=True):
                entries += [(equations, int(column), 1.0) for column in line]
                entries += [(equations, place, -1.0) for place in places]
                equations += 1
    if not equations:
        return [], None
    at, columns, signs = zip(*entries, strict=True)
    shape = (equations, len(rows) + len(values))
    return values, sparse.csr_array((signs, (at, columns)), shape=shape)


def _taken(
    rows: Sequence[tuple[str, Pair, float]], layer: str, side: int
) -> dict[int, list[int]]:
    """Bits of a tensor -> the rows whose choice has these bits."""
    found: dict[int, list[int]] = {}
    for place, (name, pair, _) in enumerate(rows):
        if name == layer:
            found.setdefault(pair[side], []).append(place)
    return found
