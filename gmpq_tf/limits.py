"""What a budget means for one model and space: a cost table and the most it may say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmpq_tf.bits import Pin, uniform_pins
from gmpq_tf.budget import (
    BIT_OPS,
    Budget,
    BudgetError,
    Candidates,
    parse_budget,
    plain_budget,
)
from gmpq_tf.cost_tables import CostTable, TableOptions, cost_table
from gmpq_tf.ends import end_names

# Unit of a table -> (size, name) of what messages say, the first that it reaches.
SHOWN = {
    "bit operations": ((1e9, "GBOPs"),),
    "bytes": ((1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "ms": ((1.0, "ms"),),
}


@dataclass(frozen=True, eq=False)
class Limit:
    """The most that a policy may cost of one resource.

    Args:
        table: what policies cost.
        budget: in the table's unit, with its constant part.
        said: the budget as the user gave it.
    """

    table: CostTable
    budget: float
    said: Any = None

    @property
    def for_layers(self) -> float:
        """What the constant part leaves for the layers."""
        return self.budget - self.table.constant

    @property
    def resource(self) -> str:
        """Key of `COST_TABLES`."""
        return self.table.resource

    def __str__(self) -> str:
        return f"{self.resource} of at most {shown(self.table, self.budget)}"


def shown(table: CostTable, *costs: float) -> str:
    """Returns costs of a table as text, "1.5 to 3 MB" of two."""
    return shown_in(table.unit, *costs)


def shown_in(unit: str, *costs: float) -> str:
    """Returns costs as text, "1.5 to 3 MB" of two.

    Args:
        unit: that they are counted in, of a `CostTable`.
        *costs: one or more.
    """
    size, name = scale_of(unit, max(costs))
    return " to ".join(f"{cost / size:.4g}" for cost in costs) + f" {name}"


def scale_of(unit: str, largest: float) -> tuple[float, str]:
    """Returns what costs are divided by to be read, and the name of that unit.

    Args:
        unit: that they are counted in, of a `CostTable`.
        largest: of them.
    """
    choices = SHOWN[unit]
    return next((c for c in choices if largest >= c[0]), choices[-1])


def resolve_limit(
    budget: Budget,
    table: CostTable,
    candidates: Candidates,
    pinned: Mapping[str, Pin] | None = None,
    what: str = "budget",
) -> Limit:
    """Returns what a budget means for a table, or refuses it with the reachable range.

    Args:
        budget: as `parse_budget` read it.
        table: of its resource.
        candidates: (weight bits, activation bits) each layer may take.
        pinned: layers that a uniform policy leaves as they are; None: ends at (8, 8).
        what: name of the option, for messages.

    Raises:
        BudgetError: every policy of the space costs more.
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
    """Returns what a budget comes to, in the unit of the table of its resource.

    Args:
        budget: as `parse_budget` read it.
        table: of its resource.
        pinned: layers that a uniform policy leaves as they are; None: ends at (8, 8).
        what: name of the option, for messages.

    Raises:
        BudgetError: it is in another unit, or a share of what is not known.
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
    return budget.amount * table.full


def _reaches(table: CostTable, low: float, high: float, candidates: Candidates) -> str:
    note = f" {table.note}" if table.note else ""
    if table.unit == "bytes":  # to the byte: rounded it might be refused again
        note = f" The least is {math.ceil(low)}B.{note}"
    if table.is_fixed(candidates):
        return (
            f"Every policy of the space costs {shown(table, low)}, whatever its bits: "
            f"raise the budget, or take a smaller model.{note}"
        )
    full = table.full
    fractions = (
        f" (fractions {low / full:.4g} to {high / full:.4g} of full precision)"
        if full
        else ""
    )
    return (
        f"The space reaches {shown(table, low, high)}{fractions}: raise the budget, "
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
    """Returns the limits that a budget sets a model, in the order given.

    Args:
        model: a built functional Keras model.
        candidates: (weight bits, activation bits) each layer may take.
        budget: as `parse_budget` takes it; None: no limit.
        pinned: layers that a uniform policy leaves as they are; None: ends at (8, 8).
        options: what tables have to know besides.
        what: name of the option, for messages.

    Raises:
        BudgetError: it cannot be read, or a limit that every policy exceeds.
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
    """Returns whichever of the two options was given, and its name.

    Args:
        budget: as `parse_budget` takes it, or None.
        bit_ops_budget: its older form, a number, or None.

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
    """Returns the limits that a policy does not keep."""
    return [each for each in limits if each.table.cost(bits) > each.budget]


def no_policy(limits: Sequence[Limit], blocking: Sequence[Limit]) -> BudgetError:
    """Returns the error of budgets that no policy keeps at once.

    Args:
        limits: all of them.
        blocking: those without any one of which the others could be kept.
    """
    named = " and ".join(map(str, blocking or limits))
    return BudgetError(
        "No policy of the space keeps all budgets at once, though some keep each. "
        f"Received: {', '.join(map(str, limits))}. Raise or leave out {named}, or "
        "allow fewer bits."
    )


def records(limits: Iterable[Limit], bits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what a policy was allowed, and what it costs, as plain JSON values.

    Args:
        limits: that it keeps.
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
