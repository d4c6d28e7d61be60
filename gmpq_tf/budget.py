"""Budgets of bit operations: what one means, and bits drawn at random within one."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

FULL_PRECISION_BITS = 32
SLACK = 0.03  # a policy lands within this fraction below its budget
RESTARTS = 200
Candidates = Mapping[str, tuple[Sequence[int], Sequence[int]]]
Bits = dict[str, tuple[int, int]]


class BudgetError(ValueError):
    """A budget that no policy of the space can meet."""


def bit_ops(macs: Any, weight_bits: Any, activation_bits: Any) -> Any:
    """Returns bit operations: macs * weight_bits * activation_bits (eq. 7).

    Args:
        macs: multiply-adds; a number, an array or a tensor, like the bits.
        weight_bits: bits of the weights, or their expectation.
        activation_bits: bits of the activations, or their expectation.

    Returns:
        The product, of the type the arguments have.
    """
    return macs * weight_bits * activation_bits


def resolve_budget(
    budget: float,
    macs: Mapping[str, int],
    candidates: Candidates,
    float_ops: int = 0,
) -> float:
    """Returns a budget in bit operations, or refuses it with the reachable range.

    Args:
        budget: up to 1 a fraction of full precision, above 1 a count.
        macs: multiply-adds of each layer.
        candidates: (weight bits, activation bits) each layer may take.
        float_ops: bit operations of layers that stay float, which the budget includes.

    Returns:
        Bit operations, those of float layers among them.

    Raises:
        BudgetError: every policy of the space costs more.
    """
    full = float_ops + sum(
        bit_ops(m, FULL_PRECISION_BITS, FULL_PRECISION_BITS) for m in macs.values()
    )
    count = budget * full if budget <= 1 else float(budget)
    low, high = (
        float_ops + sum(bit_ops(m, *map(end, candidates[n])) for n, m in macs.items())
        for end in (min, max)
    )
    if not count >= low:  # refuses NaN too
        raise BudgetError(
            "No policy of the space meets the budget. "
            f"Received: bit_ops_budget={budget!r}, which is {count / 1e9:.4g} GBOPs. "
            f"The space reaches {low / 1e9:.4g} to {high / 1e9:.4g} GBOPs (fractions "
            f"{low / full:.4g} to {high / full:.4g} of full precision): raise the "
            f"budget, allow fewer bits, or pin fewer layers.{_float_note(float_ops)}"
        )
    return count


def _float_note(float_ops: int) -> str:
    if not float_ops:
        return ""
    return f" Layers that stay float take {float_ops / 1e9:.4g} GBOPs of it."


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
