"""Limits: what a budget means for one model and search space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from gmpq_tf.bits import Pin, uniform_pins
from gmpq_tf.budget import (
    BIT_OPS,
    UNITS,
    Budget,
    BudgetError,
    Candidates,
    parse_budget,
    plain_budget,
    times,
)
from gmpq_tf.cost_tables import CostTable, TableOptions, cost_table
from gmpq_tf.ends import end_names

# Unit of a table -> (size, name) of units for messages; the first that is not too
# large. Other units: all of `UNITS`.
SHOWN = {
    "bit operations": ((1e9, "GBOPs"),),
    "bytes": ((1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "ms": ((1.0, "ms"),),
}


@dataclass(frozen=True, eq=False)
class Limit:
    """The largest cost that a policy may have in one resource.

    Args:
        table: costs of policies.
        budget: largest cost, in the table's unit, including the constant part.
        said: the budget as the user gave it.
    """

    table: CostTable
    budget: float
    said: Any = None

    @property
    def for_layers(self) -> float:
        """The budget minus the constant part: what the searched layers may cost."""
        return self.budget - self.table.constant

    @property
    def resource(self) -> str:
        """The limited resource, a key of `COST_TABLES`."""
        return self.table.resource

    def __str__(self) -> str:
        return f"{self.resource} of at most {shown(self.table, self.budget)}"


def shown(table: CostTable, *costs: float) -> str:
    """Returns one or two costs of a table as text, such as "1.5 to 3 MB"."""
    return shown_in(table.unit, *costs)


def shown_in(unit: str, *costs: float, least: bool = False) -> str:
    """Returns costs as text, such as "1.5 to 3 MB".

    Args:
        unit: unit of the costs, as in a `CostTable`.
        *costs: one or more costs.
        least: whether the first is the least budget that can be kept: it is rounded up.
    """
    size, name = scale_of(unit, max(costs))
    shares = [cost / size for cost in costs]
    if least:
        shares[0] = rounded_up(costs[0], size)
    return " to ".join(f"{share:.4g}" for share in shares) + f" {name}"


def rounded_up(cost: float, size: float) -> float:
    """Returns `cost / size` rounded up to four digits.

    A cost that is shown rounded down, and given as a budget, would be refused.
    """
    digits = Context(prec=4, rounding=ROUND_CEILING)
    return float(digits.divide(Decimal(float(cost)), Decimal(float(size))))


def scale_of(unit: str, largest: float) -> tuple[float, str]:
    """Returns the divisor that makes costs readable, and the name of that unit.

    Args:
        unit: unit of the costs, as in a `CostTable`.
        largest: the largest cost.
    """
    said = UNITS.get(unit, {unit: 1.0})
    choices = SHOWN.get(unit) or sorted(((s, n) for n, s in said.items()), reverse=True)
    return next((c for c in choices if largest >= c[0]), choices[-1])


def resolve_limit(
    budget: Budget,
    table: CostTable,
    candidates: Candidates,
    pinned: Mapping[str, Pin] | None = None,
    what: str = "budget",
) -> Limit:
    """Returns the limit that a budget sets for a search space.

    Args:
        budget: a result of `parse_budget`.
        table: cost table of its resource.
        candidates: (weight bits, activation bits) each layer may take.
        pinned: layers that a uniform policy such as "W4A4" gives other bits; None: the
            ends at (8, 8).
        what: name of the option, for messages.

    Raises:
        BudgetError: every policy of the space costs more; the message has the range of
            their costs.
    """
    count = amount_of(budget, table, pinned, what)
    low, high = table.range(candidates)
    if not count >= low:  # refuses NaN too
        raise BudgetError(
            "No policy of the space meets the budget. "
            f"Received: {what}={budget.said!r}, which is {shown(table, count)}"
            f"{'' if table.resource == BIT_OPS else f' of {table.resource}'}. "
            f"{_reaches(table, low, high, candidates)}"
        )
    return Limit(table, count, budget.said)


def amount_of(
    budget: Budget,
    table: CostTable,
    pinned: Mapping[str, Pin] | None = None,
    what: str = "budget",
) -> float:
    """Returns the amount of a budget in the unit of its cost table.

    Args:
        budget: a result of `parse_budget`.
        table: cost table of its resource.
        pinned: as for `resolve_limit`.
        what: name of the option, for messages.

    Raises:
        BudgetError: it has another unit, or is a fraction of an unknown cost.
    """
    if budget.unit not in (None, table.unit):
        raise BudgetError(
            f"{table.resource} must be said in its own unit, {table.unit}. "
            f"Received: {what}={budget.said!r}, which is in {budget.unit}. "
            "Give the amount in that unit, or name another resource."
        )
    if budget.bits is not None:
        return table.uniform(*budget.bits, pinned)
    assert budget.amount is not None
    if not budget.fraction:
        return budget.amount
    if table.full is None:
        raise BudgetError(
            f"{table.resource} of the float model is not known, so that there is no "
            f"share of it. Received: {what}={budget.said!r}. Give an amount, or a "
            "uniform policy such as 'W4A4'."
        )
    return times(budget.amount, table.full)


def _reaches(table: CostTable, low: float, high: float, candidates: Candidates) -> str:
    note = f" {table.note}" if table.note else ""
    if table.unit == "bytes":  # exact, since a rounded value might be refused again
        note = f" The least is {math.ceil(low)}B.{note}"
    if table.is_fixed(candidates):
        cost = shown_in(table.unit, low, least=True)
        return (
            f"Every policy of the space costs {cost}, whatever its bits: "
            f"raise the budget, or take a smaller model.{note}"
        )
    full = table.full
    fractions = ""
    if full:
        lowest = rounded_up(low, full)
        fractions = f" (fractions {lowest:.4g} to {high / full:.4g} of full precision)"
    reached = shown_in(table.unit, low, high, least=True)
    return (
        f"The space reaches {reached}{fractions}: raise the budget, "
        f"allow fewer bits, or pin fewer layers.{note}"
    )


def limits_of(
    model: Any,
    candidates: Candidates,
    budget: Any,
    pinned: Mapping[str, Pin] | None = None,
    options: TableOptions | None = None,
    what: str = "budget",
) -> tuple[Limit, ...]:
    """Returns the limits that budgets set for a model, in the given order.

    Args:
        model: a built functional Keras model.
        candidates: (weight bits, activation bits) each layer may take.
        budget: as for `parse_budget`; None: no limit.
        pinned: as for `resolve_limit`.
        options: what cost tables need besides the model.
        what: name of the option, for messages.

    Raises:
        BudgetError: a budget cannot be read, or every policy exceeds it.
    """
    if budget is None:
        return ()
    budgets = parse_budget(budget, what)
    options = (options or TableOptions()).for_budgets(budgets)
    pinned = uniform_pins(end_names(model), pinned)
    return tuple(
        resolve_limit(
            each,
            cost_table(each.resource, model, options),
            candidates,
            pinned,
            what,
        )
        for each in budgets
    )


def given_budget(budget: Any, bit_ops_budget: float | None) -> tuple[Any, str]:
    """Returns the budget, whichever of two options has it, and that option's name.

    Args:
        budget: as for `parse_budget`, or None.
        bit_ops_budget: the same as a number of bit operations, or None.

    Raises:
        BudgetError: both were given.
    """
    if budget is None:
        return bit_ops_budget, "bit_ops_budget"
    if bit_ops_budget is not None:
        raise BudgetError(
            "A budget must be given once. "
            f"Received: budget={budget!r}, bit_ops_budget={bit_ops_budget!r}. Leave "
            "bit_ops_budget out; budget takes the same numbers."
        )
    return budget, "budget"


def exceeded(limits: Iterable[Limit], bits: Mapping[str, Any]) -> list[Limit]:
    """Returns the limits that a policy exceeds."""
    return [each for each in limits if each.table.cost(bits) > each.budget]


def no_policy(limits: Sequence[Limit], blocking: Sequence[Limit]) -> BudgetError:
    """Returns the error for budgets that no policy keeps together.

    Args:
        limits: all limits.
        blocking: limits without one of which all others could be kept.
    """
    named = " and ".join(map(str, blocking or limits))
    return BudgetError(
        "No policy of the space keeps all budgets at once, though some keep each. "
        f"Received: {', '.join(map(str, limits))}. Raise or leave out {named}, or "
        "allow fewer bits."
    )


def records(limits: Iterable[Limit], bits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the limits and the costs of a policy, as plain JSON values.

    Args:
        limits: limits that it keeps.
        bits: the policy.
    """
    return [
        {
            "resource": each.resource,
            "said": plain_budget(each.said),
            "limit": each.budget,
            "unit": each.table.unit,
            "cost": each.table.cost(bits),
        }
        for each in limits
    ]
