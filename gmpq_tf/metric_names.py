"""Names of the metrics that only a search logs, defined here only."""

from collections.abc import Iterable

TOTAL = "loss_total"  # the sum of the risks; logged as "loss"
TASK_RISK = "task_risk"
COMPLEXITY_RISK = "complexity_risk"
GENERALIZATION_RISK = "generalization_risk"
RISKS = (TASK_RISK, COMPLEXITY_RISK, GENERALIZATION_RISK)  # R_E, R_C, R_G of eq. 6
EXPECTED_BIT_OPS = "expected_bit_ops"
ZETA = "zeta"
RANK_DISTANCE = "rank_distance"
EXPONENT = "p"
# In the order of displays.
SEARCH = (EXPECTED_BIT_OPS, *RISKS, ZETA, RANK_DISTANCE, EXPONENT)


def expected(resource: str) -> str:
    """Name of the metric for the expected cost of a resource."""
    return f"expected_{resource}"


def with_resources(resources: Iterable[str]) -> tuple[str, ...]:
    """Names of the metrics of a search with budgets of these, in display order.

    Args:
        resources: keys of `COST_TABLES`.
    """
    resources = list(resources)
    found: list[str] = []
    for name in SEARCH:
        found.append(name)
        if name == EXPECTED_BIT_OPS:
            found += [n for n in map(expected, resources) if n != EXPECTED_BIT_OPS]
        elif name in (COMPLEXITY_RISK, ZETA):
            found += [of_resource(name, each) for each in resources]
    return tuple(found)


def of_resource(name: str, resource: str) -> str:
    """Name of the metric `name` (risk or zeta) for a further budget."""
    return f"{name}_{resource}"
