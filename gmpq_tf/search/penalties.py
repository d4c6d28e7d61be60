"""Penalties on an expected cost, as functions of its share of the budget."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from gmpq_tf.spelling import lookup

PERCENT = 100.0  # the barrier measures costs in percent of the budget
EDGE = 0.99  # share of the budget from which the barrier is replaced by its tangent


def barrier(spent: tf.Tensor) -> tf.Tensor:
    """`-log(log(U + 1 - E))` with `U = 100` and `E = 100 spent` (BP-NAS), a scalar.

    It is flat inside the budget and would be infinite at it. From 99 % on it is
    replaced by its tangent, so that a search that starts outside is led into the
    budget.

    Args:
        spent: expected cost over the budget, a scalar.

    Source: Yu et al., "Search What You Want: Barrier Penalty NAS for Mixed Precision
    Quantization", ECCV 2020. Unlike the paper costs are in percent of the budget.
    """
    inside = tf.minimum(spent, EDGE)
    left = PERCENT + 1 - PERCENT * inside
    edge = PERCENT * (1 - EDGE) + 1
    slope = PERCENT / (edge * tf.math.log(edge))
    return -tf.math.log(tf.math.log(left)) + slope * tf.maximum(spent - EDGE, 0.0)


def compression(spent: tf.Tensor) -> tf.Tensor:
    """`relu((target - r) / target)^2` of the compression rate `r` (HMQ), a scalar.

    Args:
        spent: expected cost over the budget, `target / r`, a scalar.

    Source: Habi, Jennings and Netzer, "HMQ", ECCV 2020, section 4.
    """
    return tf.square(tf.nn.relu(1 - 1 / tf.maximum(spent, 1e-6)))


def excess(spent: tf.Tensor) -> tf.Tensor:
    """`relu(E - U)^2` in units of the budget (DQ), a scalar.

    Args:
        spent: expected cost over the budget, a scalar.

    Source: Uhlich et al., "Mixed Precision DNNs", ICLR 2020, section 3. Unlike the
    paper it applies to any cost, not only to the bytes of weights and activations.
    """
    return tf.square(tf.nn.relu(spent - 1))


def distance(spent: tf.Tensor) -> tf.Tensor:
    """`|E - U|` in units of the budget (FracBits), a scalar.

    Args:
        spent: expected cost over the budget, a scalar.

    Source: Yang and Jin, "FracBits", AAAI 2021.
    """
    return tf.abs(spent - 1)


CONTROLLER = "controller"  # no penalty: zeta is adapted until the budget is met
PENALTIES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "barrier": barrier,
    "compression": compression,
    "excess": excess,
    "distance": distance,
}
# Penalties of costs below the budget too, which must not pull towards every budget.
TWO_SIDED = (distance,)


def penalty_of(name: str) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """The row of `PENALTIES` with this name, of scalars; None for "controller".

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    if name == CONTROLLER:
        return None
    return lookup({CONTROLLER: None, **PENALTIES}, name, "penalty")
