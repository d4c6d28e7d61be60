"""Fractional bit-widths, pulled towards the budget (FracBits)."""

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
    """As `GuidedConfig`, and the penalty.

    Args:
        kappa: Weight of the distance from the budget, in budgets.
        start: Expected cost at the start, in budgets.
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

    A tensor is rounded to both neighbours of `b`, weighed so that their mean is `b`.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values; bit-widths have no measured error.

    Source: Yang and Jin, "FracBits: Mixed Precision Quantization via Fractional
    Bit-Widths", AAAI 2021, with its code. Unlike there kernels are not rescaled, and
    the knapsack rounds the bit-widths, not a common offset.
    """
    formulation = Formulation("distance", start=config.start)
    recipe = Recipe("adjacent", config.kappa, formulation)
    return valued_by_training(case, "fracbits", config, recipe)
