"""Bit-widths between two neighbours, of which one is drawn (SDQ)."""

from __future__ import annotations

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.strategies.dq import CLIP, DQConfig
from gmpq_tf.search.strategies.training import Recipe, valued_by_training
from gmpq_tf.search.values import Valued


def sdq(case: SearchCase, config: DQConfig) -> Valued:
    """Values choices by bit-widths `b` trained on `R_E + strength relu(E - U)^2`.

    In each step a tensor is rounded to one of the neighbours of `b`, drawn so that the
    mean is `b`: rounding errors are not averaged, as `fracbits` does.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values; bit-widths have no measured error.

    Source: Huang et al., "SDQ: Stochastic Differentiable Quantization with Mixed
    Precision", ICML 2022, by its abstract. Unlike there the cost is kept below a
    budget, and entropy-aware bin regularization and distillation are left to training.
    """
    recipe = Recipe(
        "drawn_neighbour", config.strength, Formulation("excess"), clip=CLIP
    )
    return valued_by_training(case, "sdq", config, recipe)
