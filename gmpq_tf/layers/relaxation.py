"""How a layer computes with several bit-widths at once, as long as none is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from gmpq_tf.quantizers.straight_through import straight_through
from gmpq_tf.spelling import lookup

DEFAULT_RELAXATION = "mixture"
# Of the softmax that draws get their gradient from. On the errors of 2, 3 and 4 bits a
# softmax of 1 has, as a mixture, its optimum inside the simplex; less is noisier.
SHARPNESS = 0.25
SMALLEST = 1e-30  # of the uniform draws, so that their logarithm is finite


@dataclass(frozen=True)
class Relaxation:
    """A row of `RELAXATIONS`.

    Args:
        weigh: logarithms of the branch probabilities [branches], bit-widths, noise
            [branches] or None -> weights of the branches [branches], whose gradient
            trains the importances.
        noisy: whether `weigh` is given Gumbel noise in training, drawn anew each time.
        one_rounding: round once on the weighted mean of the grids, instead of adding
            weighted roundings.
    """

    weigh: Callable[[tf.Tensor, Sequence[int], tf.Tensor | None], tf.Tensor]
    noisy: bool = False
    one_rounding: bool = False


def expectation(
    logits: tf.Tensor, bits: Sequence[int], noise: tf.Tensor | None = None
) -> tf.Tensor:
    """The probabilities themselves, `pi = softmax(logits)`, [branches] (eq. 5)."""
    return tf.nn.softmax(logits)


def draw(
    logits: tf.Tensor, bits: Sequence[int], noise: tf.Tensor | None = None
) -> tf.Tensor:
    """One branch drawn with its probability: one-hot of `argmax(log pi + g)`.

    The gradient is that of `softmax((log pi + g) / 0.25)`. Without noise the most
    probable branch.

    Args:
        logits: [branches].
        bits: not looked at.
        noise: `g`, of the standard Gumbel distribution, [branches]; None outside of
            training.

    Returns:
        0 and one 1, [branches].

    Source: Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax",
    ICLR 2017, section 2.2.
    """
    scores = tf.nn.log_softmax(logits)
    if noise is not None:
        scores += noise
    chosen = tf.one_hot(tf.argmax(scores), len(bits), dtype=scores.dtype)
    return straight_through(chosen, tf.nn.softmax(scores / SHARPNESS))


def gumbel(seed: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Draws of the standard Gumbel distribution, the same for one seed [2].

    XLA draws others than TensorFlow's own kernels do, each always the same.
    """
    uniform = tf.random.stateless_uniform(shape, seed, minval=SMALLEST, maxval=1.0)
    return -tf.math.log(-tf.math.log(uniform))


RELAXATIONS: dict[str, Relaxation] = {
    "mixture": Relaxation(expectation),
    "sampled": Relaxation(draw, noisy=True),
    "expected_grid": Relaxation(expectation, one_rounding=True),
}


def relaxation_of(name: str) -> Relaxation:
    """The row of `RELAXATIONS` with this name.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    found: Relaxation = lookup(RELAXATIONS, name, "relaxation")
    return found
