"""EdMIPS and GMPQ: importances of a mixture, trained with a complexity risk."""

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
    """Options of `TrainingConfig`, and how layers compute during the search.

    Args:
        zeta: Initial weight of the complexity risk.
        relaxation: How layers compute with several bit-widths at once: mixture takes
            the weighted sum of all quantized tensors (eq. 5); sampled draws one
            bit-width in each step; expected_grid rounds once on the mean grid;
            adjacent, nested, thresholds, learned_grid and drawn_neighbour are those of
            fracbits, bayesian_bits, hmq, dq and sdq. A mixture averages rounding
            errors, so its importances hardly tell which layers need their bits.
    """

    zeta: float = RiskConfig.zeta
    relaxation: str = DEFAULT_RELAXATION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("zeta", self.zeta, 0.0)
        relaxation_of(self.relaxation)


@dataclass(frozen=True)
class GMPQConfig(EdMIPSConfig, GuidedConfig):
    """Options of `EdMIPSConfig`, and the generalization risk; see `RiskConfig`.

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
        config: options of the training.

    Returns:
        The values, without standard errors.
    """
    recipe = Recipe(config.relaxation, config.zeta)
    return valued_by_training(case, "edmips", config, recipe)


def gmpq(case: SearchCase, config: GMPQConfig) -> Valued:
    """Values choices by importances trained on `R_E + zeta R_C + eta R_G` (eq. 6).

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors.
    """
    recipe = Recipe(config.relaxation, config.zeta)
    return valued_by_training(case, "gmpq", config, recipe)
