"""BP-NAS: a barrier at the budget, and a penalty that leaves one branch per tensor."""

from __future__ import annotations

from dataclasses import dataclass

from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION, relaxation_of
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.strategies.training import (
    GuidedConfig,
    Recipe,
    valued_by_training,
)
from gmpq_tf.search.values import Valued

INSIDE = 0.9  # expected cost at the start, as a share of the budget


@dataclass(frozen=True)
class BPNASConfig(GuidedConfig):
    """Options of `GuidedConfig`, and those of the barrier.

    Args:
        mu: Weight of the barrier.
        prob1: Weight of the Prob-1 regularizer in the last epoch; it rises from 0 in
            the second half of the epochs.
        relaxation: How layers compute with several bit-widths at once; see edmips.
    """

    mu: float = 0.1
    prob1: float = 1.0
    relaxation: str = DEFAULT_RELAXATION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("mu", self.mu, 0.0, exclusive=True)
        check_number("prob1", self.prob1, 0.0)
        relaxation_of(self.relaxation)


def bp_nas(case: SearchCase, config: BPNASConfig) -> Valued:
    """Values choices by importances trained on `R_E + barrier + Prob-1`.

    The barrier `-mu log(log(U + 1 - E))` keeps the expected cost E below the budget U
    throughout; Prob-1, `sum_l prod_i (1 - pi_li)`, is 0 where each tensor has one
    bit-width of probability 1.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors.

    Source: Yu et al., "Search What You Want: Barrier Penalty NAS for Mixed Precision
    Quantization", ECCV 2020. Both formulas are from memory: the text we had contained
    none. Unlike there, weights and activations are chosen separately, weights are not
    reshaped, and a knapsack keeps the budgets in the end.
    """
    formulation = Formulation("barrier", prob1=config.prob1, start=INSIDE)
    recipe = Recipe(config.relaxation, config.mu, formulation)
    return valued_by_training(case, "bp_nas", config, recipe)
