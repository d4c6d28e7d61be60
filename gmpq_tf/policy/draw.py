"""Bits drawn at random within budgets: the baseline that any search must beat."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gmpq_tf.budget import SLACK, Candidates
from gmpq_tf.cost_tables import ALL_BITS
from gmpq_tf.limits import Limit, exceeded, no_policy

RESTARTS = 200
Pair = tuple[int, int]
Bits = dict[str, Pair]


def draw_bits(candidates: Candidates, limits: Sequence[Limit], seed: int) -> Bits:
    """Draws bits of every layer at random, then moves them at random to the budget.

    Bits are first lowered until the cost is within every limit, then raised as long as
    one of them can be. The first draw with a cost at most 3 % below the first limit is
    taken; if there is none among 200, the nearest.

    Args:
        candidates: (weight bits, activation bits) each layer may take.
        limits: one or more limits, each of which some policy keeps.
        seed: seed of the draw.

    Returns:
        Layer name -> (weight bits, activation bits), which keep every limit.

    Raises:
        BudgetError: no draw kept them all.
    """
    meters = [Meter(limit) for limit in limits]
    first, best = meters[0], Bits()
    for restart in range(RESTARTS):
        bits = _draw(candidates, meters, random.Random(f"{seed}/{restart}"))
        if bits is None or exceeded(limits, bits):
            continue
        if not best or first.cost(bits) > first.cost(best):
            best = bits
        nothing_left = not _moves(bits, candidates, +1)
        if first.cost(best) >= (1 - SLACK) * first.budget or nothing_left:
            break
    if not best:
        raise no_policy(limits, ())
    return best


def settled_bits(
    bits: Bits, candidates: Candidates, limits: Sequence[Limit], seed: int
) -> Bits | None:
    """Lowers bits at random until budgets are kept, then raises them until none fits.

    Args:
        bits: the policy.
        candidates: (weight bits, activation bits) each layer may take.
        limits: one or more limits.
        seed: seed of the moves.

    Returns:
        Layer name -> (weight bits, activation bits); None: the moves did not reach a
        policy within every limit.
    """
    meters = [Meter(limit) for limit in limits]
    found = _settled(dict(bits), candidates, meters, random.Random(seed))
    return None if found is None or exceeded(limits, found) else found


@dataclass(frozen=True)
class Meter:
    """The cost of layers and their budget, in one resource."""

    limit: Limit

    @property
    def budget(self) -> float:
        """What the limit allows for the layers, without the constant part."""
        return self.limit.for_layers

    def cost(self, bits: Bits) -> float:
        """Cost of the layers of a policy, without the constant part."""
        return self.limit.table.of_layers(bits)

    def change(self, bits: Bits, move: Bits) -> float:
        """Change of the cost by a move (layer -> new bits)."""
        at = self.limit.table.at
        return sum(at(name, *new) - at(name, *bits[name]) for name, new in move.items())


def _draw(
    candidates: Candidates, meters: Sequence[Meter], rng: random.Random
) -> Bits | None:
    bits = {n: (rng.choice(w), rng.choice(a)) for n, (w, a) in candidates.items()}
    return _settled(bits, candidates, meters, rng)


def _settled(
    bits: Bits, candidates: Candidates, meters: Sequence[Meter], rng: random.Random
) -> Bits | None:
    # More steps than there are bit-widths occur only if more bits cost less.
    for _ in range(2 * len(bits) * len(ALL_BITS)):
        over = [m for m in meters if m.cost(bits) > m.budget]
        if not over:
            break
        moves = _moves(bits, candidates, -1) or [
            move
            for move in _moves(bits, candidates, +1)
            if any(m.change(bits, move) < 0 for m in over)
        ]
        if not moves:
            return None
        bits |= rng.choice(moves)
    while raises := _affordable(_moves(bits, candidates, +1), bits, meters):
        bits |= rng.choice(raises)
    return bits


def _affordable(moves: list[Bits], bits: Bits, meters: Sequence[Meter]) -> list[Bits]:
    left = [(m, m.budget - m.cost(bits)) for m in meters]
    return [
        move for move in moves if all(m.change(bits, move) <= rest for m, rest in left)
    ]


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
