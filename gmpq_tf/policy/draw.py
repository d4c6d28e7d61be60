"""Bits drawn at random within a budget: the baseline that any search must beat."""

import random
from collections.abc import Mapping

from gmpq_tf.budget import SLACK, Candidates, bit_ops, resolve_budget

RESTARTS = 200
Bits = dict[str, tuple[int, int]]


def draw_bits(
    macs: Mapping[str, int],
    candidates: Candidates,
    budget: float,
    seed: int,
    float_ops: int = 0,
) -> Bits:
    """Draws the bits of every layer at random and moves them, at random, to a budget.

    Bits are first lowered until the cost is within the budget, then raised as long as
    any of them can be. The first draw that lands at most 3 % below the budget is taken,
    or the nearest of 200 where the candidates have none that near.

    Args:
        macs: multiply-adds of each layer.
        candidates: (weight bits, activation bits) each layer may take.
        budget: bit operations: up to 1 a fraction of full precision, above 1 a count.
        seed: of the draw.
        float_ops: bit operations of layers that stay float, which the budget includes.

    Returns:
        Layer name -> (weight bits, activation bits), which cost at most the budget.

    Raises:
        BudgetError: no choice among the candidates is that cheap.
    """
    limit = resolve_budget(budget, macs, candidates, float_ops) - float_ops
    best: Bits = {}
    for restart in range(RESTARTS):
        bits = _draw(candidates, macs, limit, random.Random(f"{seed}/{restart}"))
        if not best or _cost(bits, macs) > _cost(best, macs):
            best = bits
        if _cost(best, macs) >= (1 - SLACK) * limit:
            break
    return best


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
