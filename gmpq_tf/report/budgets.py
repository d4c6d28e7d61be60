"""The budgets of a search, and the cost of its policy in each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gmpq_tf.budget import BIT_OPS, FILE_BYTES, LATENCY_MS, UNITS
from gmpq_tf.limits import shown_in
from gmpq_tf.report.schema import (
    REMEDY,
    ReportError,
    Summary,
    check_kind,
    check_number,
    check_text,
    named,
    take,
)

# Resources whose cost of a policy is predicted, and measured only of its file.
PREDICTED = (FILE_BYTES, LATENCY_MS)


@dataclass(frozen=True)
class SearchLimit:
    """A budget of a search.

    Args:
        resource: name of the resource, such as "file_bytes".
        unit: unit of limit and cost: "bit operations", "bytes" or "ms".
        limit: largest cost that the policy may have, above 0.
        cost: cost of the policy, or None.
        said: the budget as the user gave it, or None.
        exported: cost of the exported file, or None.

    Raises:
        ReportError: a value is of the wrong kind or out of its range.
    """

    resource: str
    unit: str
    limit: float
    cost: float | None = None
    said: Any = None
    exported: float | None = None

    def __post_init__(self) -> None:
        check_text("resource", self.resource)
        check_text("unit", self.unit)
        if self.unit not in UNITS:
            raise ReportError(
                f"unit must be one of {', '.join(UNITS)}. "
                f"Received: unit={self.unit!r:.80}. {REMEDY}"
            )
        check_number("limit", self.limit, 0)
        check_number("cost", self.cost, 0, optional=True)

    def __str__(self) -> str:
        said = f" (said: {self.said})" if isinstance(self.said, str) else ""
        if self.cost is None:
            return f"{self.resource}: at most {shown_in(self.unit, self.limit)}{said}."
        share = f", {100 * self.cost / self.limit:.1f} %" if self.limit else ""
        cost = shown_in(self.unit, self.cost)
        if self.resource in PREDICTED:
            cost = f"{cost} predicted"
        file = ""
        if self.exported is not None:
            file = f"; the exported file has {shown_in(self.unit, self.exported)}"
        return (
            f"{self.resource}: {cost} of at most {shown_in(self.unit, self.limit)}"
            f"{share}{said}{file}."
        )


def search_limits(
    summary: Summary, made_by: Mapping[str, Any]
) -> tuple[SearchLimit, ...]:
    """Finds the budgets a search had.

    Args:
        summary: summary of the run.
        made_by: provenance of the policy. `limits` in its config is used; without it
            the bit operations that `bit_ops_budget` finds.

    Returns:
        One limit per budget, in the order given; () for a search without a budget.

    Raises:
        ReportError: `limits` has the wrong form.
    """
    config = made_by.get("config")
    rows = config.get("limits") if isinstance(config, Mapping) else None
    if rows:
        with named("limits of the policy"):
            check_kind("limits", rows, list)
            return tuple(_limit(row, summary) for row in rows)
    budget = bit_ops_budget(summary, made_by)
    if budget is None:
        return ()
    used = [row.bit_ops for row in summary.rows if row.name == "searched"]
    cost = used[0] if used else None
    return (SearchLimit(BIT_OPS, "bit operations", budget, cost),)


def _limit(row: Any, summary: Summary) -> SearchLimit:
    check_kind("limits", row, Mapping)
    found = {key: take(row, key) for key in ("resource", "unit", "limit", "cost")}
    exported = None
    if found["resource"] == FILE_BYTES:
        sizes = [each.file_bytes for each in summary.rows if each.name == "searched"]
        exported = next(iter(sizes), None)
    return SearchLimit(**found, said=row.get("said"), exported=exported)


def bit_ops_budget(summary: Summary, made_by: Mapping[str, Any]) -> float | None:
    """Finds the budget of bit operations a search had.

    Args:
        summary: summary of the run; a budget in it has precedence.
        made_by: provenance of the policy, in which, or in whose config, the key
            `bit_ops_budget` is looked up otherwise.

    Returns:
        Bit operations (a budget of 1 or less is converted from a fraction of full
        precision), or None without a budget.
    """
    config = made_by.get("config")
    config = config if isinstance(config, Mapping) else {}
    found = {**made_by, **config}.get("bit_ops_budget")
    budget = found if summary.bit_ops_budget is None else summary.bit_ops_budget
    if isinstance(budget, bool) or not isinstance(budget, int | float) or budget <= 0:
        return None
    return budget * summary.full_precision_bit_ops if budget <= 1 else budget


def budget_lines(limits: tuple[SearchLimit, ...]) -> Iterator[str]:
    """Yields a line for each budget, with the cost of the searched policy."""
    yield from (f"Budget of the search: {limit}" for limit in limits)
