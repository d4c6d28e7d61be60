"""Budgets of bit operations: what one means."""

from collections.abc import Mapping, Sequence
from typing import Any

FULL_PRECISION_BITS = 32
SLACK = 0.03  # a policy lands within this fraction below its budget
Candidates = Mapping[str, tuple[Sequence[int], Sequence[int]]]


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
