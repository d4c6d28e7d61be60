"""Names of what a search logs beyond the usual, listed once."""

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
