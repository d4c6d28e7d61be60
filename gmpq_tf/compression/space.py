"""Chooses candidate bit-widths that suit a budget."""

from __future__ import annotations

import math
from typing import Any

from gmpq_tf.budget import (
    BIT_OPS,
    FILE_BYTES,
    FULL_PRECISION_BITS,
    LATENCY_MS,
    Budget,
    parse_budget,
)
from gmpq_tf.cost_tables import TableOptions, cost_table
from gmpq_tf.space import SearchSpace

LEAST, MOST = 2, 8
LOW = {2, 3, 4, 5, 6}  # candidates where every bit fewer can help
# Widths below 8 bits in which kernels can be stored; others take the next larger one.
STORED = (2, 4)


def suited_space(
    model: Any, budget: Any, options: TableOptions | None = None
) -> SearchSpace:
    """The candidates that suit a budget, few enough to be measured.

    8 bits are always among them. For bytes of the file and milliseconds activations
    have 8 bits, and kernels 2, 4 or 8, in which they are stored: other widths would
    cost accuracy and save nothing. For bit operations the candidates are the bits of
    the uniform policy of this cost, and their neighbours. For other resources they are
    2 to 6 bits of kernels, and of activations, if the cost depends on them. First and
    last layers are pinned at 8 bits, as in `SearchSpace`, if bit operations are
    budgeted, else they are searched like other layers.

    Args:
        model: built functional model.
        budget: as for `parse_budget`; None: 8 bits everywhere.
        options: further options of the cost tables.

    Raises:
        BudgetError: the budget cannot be read.
    """
    budgets = () if budget is None else parse_budget(budget)
    weights, activations = {MOST}, {MOST}
    for each in budgets:
        if each.resource in (FILE_BYTES, LATENCY_MS):
            weights |= {*STORED}
        elif each.resource == BIT_OPS:
            pair = each.bits or (_equivalent(model, each),) * 2
            weights |= _around(pair[0])
            activations |= _around(pair[1])
        else:
            of_weights, of_activations = cost_table(
                each.resource, model, options
            ).sides()
            weights |= LOW if of_weights else set()
            activations |= LOW if of_activations else set()
    amounts = all(
        each.resource != BIT_OPS and not each.bits and not each.fraction
        for each in budgets
    )
    return SearchSpace(
        tuple(weights), tuple(activations), {} if budgets and amounts else None
    )


def _equivalent(model: Any, budget: Budget) -> float:
    """(Fractional) bits of the uniform policy with the bit operations of a budget."""
    assert budget.amount is not None
    share = budget.amount
    if not budget.fraction:
        share /= cost_table(BIT_OPS, model).full or budget.amount
    return FULL_PRECISION_BITS * math.sqrt(share)


def _around(bits: float) -> set[int]:
    near = range(math.floor(bits) - 1, math.ceil(bits) + 2)
    return {min(max(each, LEAST), MOST) for each in near}
