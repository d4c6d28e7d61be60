"""Random policies of a given cost: the baseline that any search must beat."""

from __future__ import annotations

from typing import Any

from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.space import SearchSpace


def random_policy(
    model: Any, space: SearchSpace, budget: float, seed: int
) -> BitwidthPolicy:
    """Draws a policy of a space at random: `BitwidthPolicy.random` on a `SearchSpace`.

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
    return BitwidthPolicy.random(
        model, budget, seed, space.weight_bits, space.activation_bits, space.pinned
    )
