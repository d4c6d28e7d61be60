"""RQ: codes drawn in training from where noise may move a value, plain elsewhere."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from gmpq_tf.quantizers.draws import uniform
from gmpq_tf.quantizers.lsq import Lsq, LsqKernel
from gmpq_tf.quantizers.straight_through import straight_through

SIGMA = 1 / 3  # of the noise, in steps
REACH = 3  # codes on each side of a value that noise may reach: nine sigma


class Rq(Lsq):
    """Quantize activations to codes that are drawn in training.

    Outside of training it is `Lsq`. In training a code `c` is drawn with

    `P(c) = [S((c + 1/2 - v) / sigma) - S((c - 1/2 - v) / sigma)] / sum`, `v = x / s`,

    with the sigmoid S: the share of logistic noise around v that rounds to c, on the
    grid's codes near v. Its gradient is that of the mean, `sum_c c P(c)`.

    Source: Louizos et al., "Relaxed Quantization for Discretized Neural Networks", ICLR
    2019, section 2. Unlike there codes are drawn themselves, with the gradient of their
    mean instead of a concrete relaxation, sigma stays a third of the step, and values
    beyond the grid are clipped first.
    """

    stochastic = True

    def draw(self, x: tf.Tensor, *args: Any) -> tf.Tensor:
        """`drawn` of the arguments, like `x`, of any shape."""
        return drawn(x, *args)


class RqKernel(LsqKernel):
    """Likewise of kernels, on the grid of `LsqKernel`.

    Source: Louizos et al., ICLR 2019, with the differences that `Rq` names.
    """

    stochastic = True

    def draw(self, kernel: tf.Tensor, *args: Any) -> tf.Tensor:
        """`drawn` of the arguments, like the kernel, of any shape."""
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
    """Values `code * step` with drawn codes, like `x`.

    Args:
        x: any shape.
        step: positive, broadcasts against `x`.
        low: smallest code, a scalar.
        high: largest code, a scalar.
        seed: [2].
        place: of the draw, among those of one seed.
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
    """Codes near values, and their probabilities; [6, ...] each.

    Args:
        scaled: values in steps, within the codes, any shape.
        low: smallest code, whose chances those below it do not share.
        high: largest code.
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
