"""Lowest and highest cost of every resource in a search space, for `gmpq-cost`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from gmpq_tf.align import align
from gmpq_tf.bits import uniform_pins
from gmpq_tf.budget import Budget, BudgetError, parse_budget, plain_budget
from gmpq_tf.cost_tables import COST_TABLES, CostTable, TableOptions, cost_table
from gmpq_tf.ends import end_names
from gmpq_tf.limits import Limit, amount_of, shown_in
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search.knapsack import check_limits
from gmpq_tf.space import Candidates, SearchSpace

HEADER = ("resource", "lowest", "highest", "float", "policy")
Record = dict[str, Any]


def resource_records(
    model: keras.Model,
    space: SearchSpace,
    budget: str | None = None,
    options: TableOptions | None = None,
    policy: BitwidthPolicy | None = None,
) -> Record:
    """Returns the range of every resource of a model, and where budgets lie in it.

    Args:
        model: a built functional Keras model.
        space: the candidates of its layers.
        budget: text as for `parse_budget`; None: no budget.
        options: storage and latency table. Without a storage it is "smallest", as in a
            search with a budget of bytes.
        policy: policy whose costs are added; None: none.

    Returns:
        Plain JSON values under the keys

        - `storage`: storage of kernels in the .tflite file.
        - `resources`: one dict per row of `COST_TABLES` with resource, unit, lowest,
          highest, float (None: not known), policy and note; or, without a table, with
          resource and `missing`, the reason.
        - `budgets`: one dict per budget with said, resource, unit, limit, reachable and
          place (0: the lowest cost in the space, 1: the highest; None: bits do not
          change it).
        - `together`: None, or the reason why no policy keeps all budgets.

    Raises:
        BudgetError: a budget cannot be read, or its resource has no table.
    """
    budgets = () if budget is None else parse_budget(budget)
    options = options or TableOptions()
    options = TableOptions(options.storage or "smallest", options.latency_table)
    candidates = space.candidates(model)
    tables: dict[str, CostTable] = {}
    missing: dict[str, str] = {}
    for resource in COST_TABLES:
        try:
            tables[resource] = cost_table(resource, model, options)
        except BudgetError as error:
            missing[resource] = str(error)
    limits = [_limit(each, model, tables, space, options) for each in budgets]
    return {
        "storage": options.storage,
        "resources": [
            _resource(tables[name], candidates, policy)
            if name in tables
            else {"resource": name, "missing": missing[name]}
            for name in COST_TABLES
        ],
        "budgets": [_budget(each, candidates) for each in limits],
        "together": _excluded(limits, candidates),
    }


def _limit(
    budget: Budget,
    model: keras.Model,
    tables: Mapping[str, CostTable],
    space: SearchSpace,
    options: TableOptions,
) -> Limit:
    table = tables.get(budget.resource)
    if table is None:  # raises what was wrong
        table = cost_table(budget.resource, model, options)
    pins = uniform_pins(end_names(model), space.pinned)
    return Limit(table, amount_of(budget, table, pins), budget.said)


def _resource(
    table: CostTable, candidates: Candidates, policy: BitwidthPolicy | None
) -> Record:
    low, high = table.range(candidates)
    return {
        "resource": table.resource,
        "unit": table.unit,
        "lowest": low,
        "highest": high,
        "float": table.full,
        "policy": None if policy is None else table.cost(policy),
        "note": table.note,
    }


def _budget(limit: Limit, candidates: Candidates) -> Record:
    low, high = limit.table.range(candidates)
    place = None if high == low else (limit.budget - low) / (high - low)
    return {
        "said": plain_budget(limit.said),
        "resource": limit.resource,
        "unit": limit.table.unit,
        "limit": limit.budget,
        "lowest": low,
        "highest": high,
        "reachable": limit.budget >= low,
        "place": place,
    }


def _excluded(limits: list[Limit], candidates: Candidates) -> str | None:
    """Returns why no policy keeps all budgets at once though each alone can be kept."""
    if any(each.budget < each.table.range(candidates)[0] for each in limits):
        return None  # that budget's own row says so
    try:
        check_limits(candidates, limits)
    except BudgetError as error:
        return str(error)
    return None


def format_resources(found: Record) -> str:
    """Formats what `resource_records` returned.

    Args:
        found: its result.

    Returns:
        A table of resources, the resources without one, and one line per budget.
    """
    rows = [row for row in found["resources"] if "missing" not in row]
    cells = [_cells(row, found["storage"]) for row in rows]
    used = [i for i in range(len(HEADER)) if i < 3 or any(row[i] for row in cells)]
    lines = [align([HEADER[i] for i in used], [[r[i] for i in used] for r in cells])]
    lines += [
        f"{row['resource']}: not known. {row['missing']}"
        for row in found["resources"]
        if "missing" in row
    ]
    lines += _said_of_budgets(found)
    return "\n".join(lines) + "\n"


def _cells(row: Record, storage: str) -> tuple[str, ...]:
    name = row["resource"]
    if name in ("file_bytes", "latency_ms"):
        name += f" ({storage})"
    return name, *(
        "" if row[k] is None else shown_in(row["unit"], row[k], least=k == "lowest")
        for k in HEADER[1:]
    )


def _said_of_budgets(found: Record) -> Iterator[str]:
    for row in found["budgets"]:
        yield f"{row['said']}: {row['resource']} of at most {_where(row)}"
    if found["together"]:
        yield found["together"]
    elif len(found["budgets"]) > 1 and all(r["reachable"] for r in found["budgets"]):
        yield "All at once: reachable."


def _where(row: Record) -> str:
    """Says where a budget lies between the lowest and highest cost in the space."""
    unit, place = row["unit"], row["place"]
    limit = shown_in(unit, row["limit"])
    if not row["reachable"]:
        lowest = shown_in(unit, row["lowest"], least=True)
        return f"{limit}: not reachable, the lowest is {lowest}."
    if place is None:
        return f"{limit}: every policy keeps it, and no bits change it."
    if place >= 1:
        return f"{limit}: every policy keeps it."
    return f"{limit}: reachable, {100 * place:.1f} % of the way from lowest to highest."
