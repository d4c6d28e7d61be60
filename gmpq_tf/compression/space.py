"""Which bit-widths are worth measuring for a budget."""

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
from gmpq_tf.cost_tables import cost_table
from gmpq_tf.space import SearchSpace

LEAST, MOST = 2, 8
# What kernels of other widths are stored in, whatever the storage.
STORED = (2, 4)


def suited_space(model: Any, budget: Any) -> SearchSpace:
    """The candidates that a table needs for a budget, few enough to be measured.

    Eight bits are always among them. Bytes of the file and milliseconds do not depend
    on the bits of activations, and kernels are stored in 2, 4 or 8 bits: the others
    would cost accuracy and save nothing. Bit operations: the bits of the uniform policy
    that costs as much, and their neighbours. Ends are pinned at 8 bits where bit
    operations are budgeted, as in `SearchSpace`, and measured like other layers where
    bytes and milliseconds alone are.

    Args:
        model: built functional model.
        budget: as `parse_budget` takes it; None: eight bits everywhere.

    Raises:
        BudgetError: it cannot be read.
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
        elif each.resource == "weight_bytes":
            weights |= {2, 3, 4, 5, 6}
    amounts = all(
        each.resource != BIT_OPS and not each.bits and not each.fraction
        for each in budgets
    )
    return SearchSpace(
        tuple(weights), tuple(activations), {} if budgets and amounts else None
    )


def _equivalent(model: Any, budget: Budget) -> float:
    """Bits of the uniform policy that takes a number of bit operations."""
    assert budget.amount is not None
    share = budget.amount
    if not budget.fraction:
        share /= cost_table(BIT_OPS, model).full or budget.amount
    return FULL_PRECISION_BITS * math.sqrt(share)


def _around(bits: float) -> set[int]:
    near = range(math.floor(bits) - 1, math.ceil(bits) + 2)
    return {min(max(each, LEAST), MOST) for each in near}
