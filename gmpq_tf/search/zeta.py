"""How zeta, the weight of the complexity risk, is controlled to meet a budget.

It is a proportional-integral (PI) controller on `ln(E[cost] / budget)`: `adapted_zeta`
is the integral term, kept from step to step; `damped_zeta` adds the proportional term.
"""

from __future__ import annotations

import tensorflow as tf

INTEGRAL_GAIN, PROPORTIONAL_GAIN = 0.2, 50.0
MOST_EXCESS = 7.0  # ln of the largest possible ratio, 32 x 32 bits to 1 x 1
MOST_ZETA = 1000.0  # in units of a typical zeta; searches end below 5


def adapted_zeta(
    zeta: tf.Tensor, expected: tf.Tensor, budget: float, scale: float
) -> tf.Tensor:
    """`zeta + 0.2 scale ln(E[BOPs] / budget)`: the integral term of the controller.

    It is a dual ascent on the constraint that the budget is spent, neither more nor
    less: zeta may become negative where the task alone would choose fewer bits. Where
    the importances cannot reach the budget it stops at 1000 `scale`, so that it stays
    finite and can return (anti-windup). NaN stays NaN, so that the search is refused.

    Args:
        zeta: zeta before the step, a scalar.
        expected: expected cost, a scalar, e.g. in bit operations.
        budget: budget in the same unit.
        scale: a typical zeta, the unit of the change.
    """
    moved = zeta + INTEGRAL_GAIN * scale * _excess(expected, budget)
    return tf.clip_by_value(moved, -MOST_ZETA * scale, MOST_ZETA * scale)


def damped_zeta(
    zeta: tf.Tensor, expected: tf.Tensor, budget: float, scale: float
) -> tf.Tensor:
    """`zeta + 50 scale ln(E[BOPs] / budget)`: the weight of the risk in this step.

    The importances integrate their gradients, so an integral term alone overshoots and
    oscillates; the proportional term reacts at once. Arguments as for `adapted_zeta`,
    all scalars.
    """
    return zeta + PROPORTIONAL_GAIN * scale * _excess(expected, budget)


def _excess(expected: tf.Tensor, budget: float) -> tf.Tensor:
    """`ln(E[BOPs] / budget)`, clipped to -7 .. 7, so finite even for `E[BOPs] = 0`."""
    ratio = tf.math.log(expected / tf.cast(budget, expected.dtype))
    return tf.clip_by_value(ratio, -MOST_EXCESS, MOST_EXCESS)
