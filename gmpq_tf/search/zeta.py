"""The weight of the complexity risk, zeta, and how it follows a budget."""

from __future__ import annotations

import tensorflow as tf

INTEGRAL_GAIN, PROPORTIONAL_GAIN = 0.2, 50.0
MOST_EXCESS = 7.0  # ln of the widest ratio between budgets: 32 x 32 bits to one
MOST_ZETA = 1000.0  # typical zetas; searches end below 5


def adapted_zeta(
    zeta: tf.Tensor, expected: tf.Tensor, budget: float, scale: float
) -> tf.Tensor:
    """`zeta + 0.2 scale ln(E[BOPs] / budget)`: the integral term of the controller.

    A dual ascent on the constraint that the budget is spent, neither more nor less:
    zeta may become negative where the task alone would choose fewer bits. Where the
    importances cannot reach the budget it stops at 1000 `scale`, so that it stays
    finite and finds back (anti-windup); NaN stays NaN, for the search to be refused.

    Args:
        zeta: before the step.
        expected: expected bit operations.
        budget: bit operations.
        scale: a typical zeta, in whose units the weight moves.
    """
    moved = zeta + INTEGRAL_GAIN * scale * _excess(expected, budget)
    return tf.clip_by_value(moved, -MOST_ZETA * scale, MOST_ZETA * scale)


def damped_zeta(
    zeta: tf.Tensor, expected: tf.Tensor, budget: float, scale: float
) -> tf.Tensor:
    """`zeta + 50 scale ln(E[BOPs] / budget)`: what the risk is weighted with.

    Importances integrate the pressure on them, so a weight that only accumulates
    overshoots and oscillates; the second term answers at once, both ways.
    """
    return zeta + PROPORTIONAL_GAIN * scale * _excess(expected, budget)


def _excess(expected: tf.Tensor, budget: float) -> tf.Tensor:
    """`ln(E[BOPs] / budget)`, within 7: finite even where no operation is expected."""
    ratio = tf.math.log(expected / tf.cast(budget, expected.dtype))
    return tf.clip_by_value(ratio, -MOST_EXCESS, MOST_EXCESS)
