"""FracBits: fractional bit-widths, pulled towards the budget."""

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


@dataclass(frozen=True)
class FracBitsConfig(GuidedConfig):
    """Options of `GuidedConfig`, and those of the penalty.

    Args:
        kappa: Weight of the distance between expected cost and budget, in units of the
            budget.
        start: Expected cost at the start, in units of the budget.
    """

    readout: str = "expected_bits"
    kappa: float = 1.0
    start: float = 1.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("kappa", self.kappa, 0.0, exclusive=True)
        check_number("start", self.start, 0.0, exclusive=True)


def fracbits(case: SearchCase, config: FracBitsConfig) -> Valued:
    """Values choices by bit-widths `b` trained on `R_E + kappa |E - U|`.

    A tensor is the weighted sum of its quantizations to the two candidates next to `b`,
    with weights that make the mean bit-width `b`.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors.

    Source: Yang and Jin, "FracBits: Mixed Precision Quantization via Fractional
    Bit-Widths", AAAI 2021, with its code. Unlike there, kernels are not rescaled, and
    bit-widths are rounded by the knapsack, not by one offset for all.
    """
    formulation = Formulation("distance", start=config.start)
    recipe = Recipe("adjacent", config.kappa, formulation)
    return valued_by_training(case, "fracbits", config, recipe)
