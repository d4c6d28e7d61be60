"""DQ: steps and ranges are learned, and bit-widths follow from them."""

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

CLIP = 1.0  # bound of the gradients of log2 d and log2 x_max


@dataclass(frozen=True)
class DQConfig(GuidedConfig):
    """Options of `GuidedConfig`, and the weight of the penalty.

    Args:
        strength: Weight of the squared excess of the expected cost over the budget,
            both in units of the budget.
    """

    readout: str = "expected_bits"
    strength: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("strength", self.strength, 0.0, exclusive=True)


def dq(case: SearchCase, config: DQConfig) -> Valued:
    """Values choices by `-(b - log2(x_max / d + 1))^2`, of trained `d` and `x_max`.

    They are trained on `R_E + strength relu(E - U)^2`, where the expected cost E
    follows from the steps and ranges of all tensors and U is the budget. Signed grids
    have one bit more.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors.

    Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good
    parametrization", ICLR 2020. Unlike there, any cost can be penalized, and bits stay
    within the candidates.
    """
    recipe = Recipe("learned_grid", config.strength, Formulation("excess"), clip=CLIP)
    return valued_by_training(case, "dq", config, recipe)
