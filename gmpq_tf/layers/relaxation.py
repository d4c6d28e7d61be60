"""How a layer computes with several bit-widths at once during a search."""

from __future__ import annotations

import tensorflow as tf

from gmpq_tf.layers.drawn_neighbour import DRAWN_NEIGHBOUR
from gmpq_tf.layers.fractional import ADJACENT
from gmpq_tf.layers.learned_grid import LEARNED_GRID
from gmpq_tf.layers.nested_gates import NESTED
from gmpq_tf.layers.relaxation_row import (
    Grids,
    Relaxation,
    gumbel,
    probabilities,
)
from gmpq_tf.layers.thresholds import THRESHOLD_GRIDS
from gmpq_tf.quantizers.straight_through import straight_through
from gmpq_tf.spelling import lookup

DEFAULT_RELAXATION = "mixture"
# Temperature of the softmax that gives `draw` its gradient. With the rounding errors of
# 2, 3 and 4 bits, a temperature of 1 has its optimum at a mixture of branches, not at
# one of them; a lower one makes the gradient noisier.
SHARPNESS = 0.25


def expectation(
    logits: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None
) -> tf.Tensor:
    """The probabilities as weights: `pi = softmax(logits)`, [branches] (eq. 5)."""
    return probabilities(logits, grids)


def draw(logits: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None) -> tf.Tensor:
    """Draws one branch with its probability: one-hot vector of `argmax(log pi + g)`.

    The gradient is that of `softmax((log pi + g) / 0.25)`. Without noise the most
    probable branch is taken.

    Args:
        logits: [branches].
        grids: not used.
        noise: `g`, drawn from the standard Gumbel distribution, [branches]; None
            outside of training.

    Returns:
        One 1 and else 0, [branches].

    Source: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax",
    ICLR 2017, section 2.2.
    """
    scores = tf.nn.log_softmax(logits)
    if noise is not None:
        scores += noise
    chosen = tf.one_hot(tf.argmax(scores), logits.shape[0], dtype=scores.dtype)
    return straight_through(chosen, tf.nn.softmax(scores / SHARPNESS))


RELAXATIONS: dict[str, Relaxation] = {
    "mixture": Relaxation(expectation),
    "sampled": Relaxation(draw, noise=gumbel),
    "expected_grid": Relaxation(expectation, one_rounding=True),
    "adjacent": ADJACENT,
    "nested": NESTED,
    "thresholds": THRESHOLD_GRIDS,
    "learned_grid": LEARNED_GRID,
    "drawn_neighbour": DRAWN_NEIGHBOUR,
}


def relaxation_of(name: str) -> Relaxation:
    """The row of `RELAXATIONS` with this name.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    found: Relaxation = lookup(RELAXATIONS, name, "relaxation")
    return found


# The relaxation of a tensor with a single branch, which has nothing to choose.
ALONE = RELAXATIONS[DEFAULT_RELAXATION]
