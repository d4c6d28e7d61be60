"""The paper's formulation: a mixture, whose complexity risk follows the budget."""

from __future__ import annotations

from dataclasses import dataclass

from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION, relaxation_of
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.strategies.training import (
    GuidedConfig,
    Recipe,
    TrainingConfig,
    valued_by_training,
)
from gmpq_tf.search.values import Valued


@dataclass(frozen=True)
class EdMIPSConfig(TrainingConfig):
    """As `TrainingConfig`, and how layers compute meanwhile.

    Args:
        zeta: Where the weight of the complexity risk starts.
        relaxation: How layers compute with several bit-widths at once: mixture adds
            their outputs, as eq. 5; sampled draws one in each step; expected_grid
            rounds once on the mean grid; adjacent, nested, thresholds and learned_grid
            are those of fracbits, bayesian_bits, hmq and dq. A mixture averages
            rounding errors, so that its importances hardly tell a layer that needs its
            bits from another.
    """

    zeta: float = RiskConfig.zeta
    relaxation: str = DEFAULT_RELAXATION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("zeta", self.zeta, 0.0)
        relaxation_of(self.relaxation)


@dataclass(frozen=True)
class GMPQConfig(EdMIPSConfig, GuidedConfig):
    """As `EdMIPSConfig`, and the generalization risk; see `RiskConfig`.

    Args:
        eta: Weight of the generalization risk, above 0.
    """

    eta: float = RiskConfig.eta

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("eta", self.eta, 0.0, exclusive=True)


def edmips(case: SearchCase, config: EdMIPSConfig) -> Valued:
    """Values choices by importances trained on `R_E + zeta R_C` (EdMIPS).

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values; importances have no measured error.
    """
    recipe = Recipe(config.relaxation, config.zeta)
    return valued_by_training(case, "edmips", config, recipe)


def gmpq(case: SearchCase, config: GMPQConfig) -> Valued:
    """Values choices by importances trained on `R_E + zeta R_C + eta R_G` (eq. 6).

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values; importances have no measured error.
    """
    recipe = Recipe(config.relaxation, config.zeta)
    return valued_by_training(case, "gmpq", config, recipe)
