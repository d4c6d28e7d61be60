"""Learned steps and ranges, from which bits follow (DQ)."""

from __future__ import annotations

from dataclasses import dataclass

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.strategies.training import (
    GuidedConfig,
    Recipe,
    valued_by_training,
)
from gmpq_tf.search.values import Valued

CLIP = 1.0  # of gradients of log2 d and log2 x_max: at most about d and x_max


@dataclass(frozen=True)
class DQConfig(GuidedConfig):
    """As `GuidedConfig`, and the penalty.

    Args:
        strength: Weight of the squared excess over the budget, in budgets.
    """

    readout: str = "expected_bits"
    strength: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("strength", self.strength, 0.0, exclusive=True)


def dq(case: SearchCase, config: DQConfig) -> Valued:
    """Values choices by `-(b - log2(x_max / d + 1))^2`, of trained `d` and `x_max`.

    Trained on `R_E + strength relu(E - U)^2`, where the expected cost E follows from
    the steps and ranges of all tensors; signed grids have one bit more.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values; they have no measured error.

    Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good
    parametrization", ICLR 2020. Unlike there any cost is penalized, and bits stay
    within the candidates.
    """
    recipe = Recipe("learned_grid", config.strength, Formulation("excess"), clip=CLIP)
    return valued_by_training(case, "dq", config, recipe)
