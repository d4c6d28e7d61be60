"""SDQ: fractional bit-widths, of which one neighbour is drawn in each step."""

from __future__ import annotations

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.strategies.dq import CLIP, DQConfig
from gmpq_tf.search.strategies.training import Recipe, valued_by_training
from gmpq_tf.search.values import Valued


def sdq(case: SearchCase, config: DQConfig) -> Valued:
    """Values choices by bit-widths `b` trained on `R_E + strength relu(E - U)^2`.

    In each step a tensor is quantized to one of the two candidates next to `b`, drawn
    so that the mean bit-width is `b`. Unlike in `fracbits`, rounding errors are not
    averaged.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors.

    Source: Huang et al., "SDQ: Stochastic Differentiable Quantization with Mixed
    Precision", ICML 2022, by its abstract. Unlike there, the cost is kept below a
    budget, and entropy-aware bin regularization and distillation are not part of the
    search.
    """
    recipe = Recipe(
        "drawn_neighbour", config.strength, Formulation("excess"), clip=CLIP
    )
    return valued_by_training(case, "sdq", config, recipe)
