"""Names of what a search logs beyond the usual, listed once."""

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
# As displays order them.
SEARCH = (EXPECTED_BIT_OPS, *RISKS, ZETA, RANK_DISTANCE, EXPONENT)


def expected(resource: str) -> str:
    """Name of the expected cost of a resource, a key of `COST_TABLES`."""
    return f"expected_{resource}"


def with_resources(resources: Iterable[str]) -> tuple[str, ...]:
    """Names of what a search logs that has budgets of these, as displays order them.

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
    """Name of what is logged of a further budget: of its risk, or of its weight."""
    return f"{name}_{resource}"
