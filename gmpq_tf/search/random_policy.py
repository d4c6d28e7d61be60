"""Random policies of a given cost: the baseline that any search must beat."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from gmpq_tf.cost import bit_ops
from gmpq_tf.graph import layer_macs
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search.budget import SLACK, Candidates, resolve_budget
from gmpq_tf.space import SearchSpace

RESTARTS = 200
Bits = dict[str, tuple[int, int]]


def random_policy(
    model: Any, space: SearchSpace, budget: float, seed: int
) -> BitwidthPolicy:
    """Draws a policy at random and moves it, bit by bit at random, to a budget.

    Bits are first lowered until the cost is within the budget, then raised as long as
    any of them can be. The first draw that lands at most 3 % below the budget is taken,
    or the nearest of 200 where the space has none that near.

    Args:
        model: a built functional Keras model.
        space: candidate bit-widths of its layers.
        budget: bit operations: up to 1 a fraction of full precision, above 1 a count.
        seed: of the draw.

    Returns:
        A policy that costs no more than the budget.

    Raises:
        BudgetError: no policy of the space is that cheap.
    """
    macs, candidates = layer_macs(model), space.candidates(model)
    limit = resolve_budget(budget, macs, candidates)
    best: Bits = {}
    for restart in range(RESTARTS):
        bits = _draw(candidates, macs, limit, random.Random(f"{seed}/{restart}"))
        if not best or _cost(bits, macs) > _cost(best, macs):
            best = bits
        if _cost(best, macs) >= (1 - SLACK) * limit:
            break
    config = {"space": space.to_config(), "bit_ops_budget": budget}
    made_by = {"strategy": "random", "config": config, "seed": seed}
    return BitwidthPolicy(model.name, best, made_by)


def _draw(
    candidates: Candidates, macs: Mapping[str, int], limit: float, rng: random.Random
) -> Bits:
    bits = {n: (rng.choice(w), rng.choice(a)) for n, (w, a) in candidates.items()}
    while _cost(bits, macs) > limit:
        bits |= rng.choice(_moves(bits, candidates, -1))
    while raises := _affordable(_moves(bits, candidates, +1), bits, macs, limit):
        bits |= rng.choice(raises)
    return bits


def _affordable(
    moves: list[Bits], bits: Bits, macs: Mapping[str, int], limit: float
) -> list[Bits]:
    return [move for move in moves if _cost({**bits, **move}, macs) <= limit]


def _moves(bits: Bits, candidates: Candidates, direction: int) -> list[Bits]:
    """Every change of one bit-width to the next candidate in a direction."""
    moves = []
    for name, pair in bits.items():
        for which in (0, 1):
            valid = sorted(candidates[name][which])
            place = valid.index(pair[which]) + direction
            if 0 <= place < len(valid):
                moved = (
                    (valid[place], pair[1]) if which == 0 else (pair[0], valid[place])
                )
                moves.append({name: moved})
    return moves


def _cost(bits: Bits, macs: Mapping[str, int]) -> int:
    return sum(bit_ops(macs[name], *pair) for name, pair in bits.items())
