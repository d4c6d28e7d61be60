"""Bayesian Bits: gates that add one bit-width after the other."""

from __future__ import annotations

from dataclasses import dataclass

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.strategies.training import (
    GuidedConfig,
    Recipe,
    valued_by_training,
)
from gmpq_tf.search.values import Valued


@dataclass(frozen=True)
class BayesianBitsConfig(GuidedConfig):
    """Options of `GuidedConfig`, and the weight of the complexity risk.

    Args:
        zeta: Initial weight of the expected cost.
    """

    zeta: float = RiskConfig.zeta

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("zeta", self.zeta, 0.0)


def bayesian_bits(case: SearchCase, config: BayesianBitsConfig) -> Valued:
    """Values each bit-width by the probability that just the gates up to it are open.

    `x_q = q_1 + z_1 (q_2 - q_1 + z_2 (...))` with hard-concrete gates `z`; the expected
    cost follows from `P(z > 0)`.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors.

    Source: van Baalen et al., "Bayesian Bits: Unifying Quantization and Pruning",
    NeurIPS 2020. Unlike there, candidates need not double, 0 bits (pruning) is not
    offered, and the weight of the cost is adjusted to keep the budget.
    """
    recipe = Recipe("nested", config.zeta, adam=True)
    return valued_by_training(case, "bayesian_bits", config, recipe)
