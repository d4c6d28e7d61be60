"""RQ: in training codes are drawn as if noise moved the value; else plain LSQ."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from gmpq_tf.quantizers.draws import uniform
from gmpq_tf.quantizers.lsq import Lsq, LsqKernel
from gmpq_tf.quantizers.straight_through import straight_through

SIGMA = 1 / 3  # scale of the noise, in steps
REACH = 3  # codes on each side of a value that may be drawn: nine sigma


class Rq(Lsq):
    """Quantizes activations to codes that are drawn at random in training.

    Outside of training it is `Lsq`. In training a code `c` is drawn with the
    probability

    `P(c) = [S((c + 1/2 - v) / sigma) - S((c - 1/2 - v) / sigma)] / sum`, `v = x / s`,

    with the sigmoid S: the probability that v plus logistic noise rounds to c,
    normalized over the grid's codes near v. The gradient is that of the mean,
    `sum_c c P(c)`.

    Source: Louizos et al., "Relaxed Quantization for Discretized Neural Networks", ICLR
    2019, section 2; only its abstract was at hand, and the formula is not verified.
    Unlike the paper hard codes are drawn, with the gradient of their mean instead of a
    concrete relaxation; sigma is always a third of the step; and values beyond the grid
    are clipped first.
    """

    stochastic = True

    def draw(self, x: tf.Tensor, *args: Any) -> tf.Tensor:
        """Returns `code * step` with drawn codes, like `x`, any shape; see `drawn`."""
        return drawn(x, *args)


class RqKernel(LsqKernel):
    """As `Rq`, for kernels, on the grid of `LsqKernel`.

    Source: Louizos et al., ICLR 2019, with the differences that `Rq` names.
    """

    stochastic = True

    def draw(self, kernel: tf.Tensor, *args: Any) -> tf.Tensor:
        """Returns `code * step` with drawn codes, in the kernel's shape; as `drawn`."""
        return drawn(kernel, *args)


rq, rq_kernel = Rq(), RqKernel()


def drawn(
    x: tf.Tensor,
    step: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    seed: tf.Tensor,
    place: int = 0,
) -> tf.Tensor:
    """Draws codes near `x / step`; returns `code * step`, like `x`.

    Args:
        x: any shape.
        step: positive, broadcasts against `x`.
        low: smallest code, a scalar.
        high: largest code, a scalar.
        seed: [2], as `next_seed` returns it.
        place: number of the draw among those of one seed, 0 to 63.
    """
    scaled = tf.minimum(tf.maximum(x / step, low), high)
    codes, chances = near_codes(scaled, low, high)
    mean = tf.reduce_sum(codes * chances, 0)
    edges = tf.cumsum(chances)[:-1]
    chance = tf.cast(uniform(tf.shape(x), seed, place), x.dtype)
    ways = tf.reduce_sum(tf.cast(chance > edges, x.dtype), 0)
    return straight_through(codes[0] + ways, mean) * step


def near_codes(
    scaled: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the six codes nearest to each value, and their probabilities.

    Args:
        scaled: values in steps, between `low` and `high`, any shape.
        low: smallest code; codes below it have the probability 0.
        high: largest code; codes above it have the probability 0.

    Returns:
        Two tensors [6, ...]; the probabilities sum to 1 along the first axis.
    """
    ways = tf.reshape(
        tf.range(1 - REACH, REACH + 1, dtype=scaled.dtype),
        [-1] + [1] * len(scaled.shape),
    )
    codes = tf.stop_gradient(tf.floor(scaled)) + ways
    above = tf.sigmoid((codes + 0.5 - scaled) / SIGMA)
    below = tf.sigmoid((codes - 0.5 - scaled) / SIGMA)
    inside = tf.cast((codes >= low) & (codes <= high), scaled.dtype)
    chances = (above - below) * inside
    return codes, chances / tf.reduce_sum(chances, 0)
