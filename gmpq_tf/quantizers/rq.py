"""RQ: in training codes are drawn as if noise moved the value; else plain LSQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.quantizers.draws import uniform
from gmpq_tf.quantizers.fused import compiled
from gmpq_tf.quantizers.lsq import Lsq, LsqKernel
from gmpq_tf.quantizers.straight_through import floor_half_up

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
        step: positive, of a shape that broadcasts against `x`.
        low: smallest code, a scalar.
        high: largest code, a scalar.
        seed: [2], as `next_seed` returns it.
        place: number of the draw among those of one seed, 0 to 63.
    """
    # Drawn here, since XLA's generator gives other numbers.
    chance = tf.cast(uniform(tf.shape(x), seed, place), x.dtype)
    return _value(x, step, low, high, chance)


@tf.custom_gradient
def _value(*arguments: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    def backward(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        return *_gradients(*arguments, upstream), None, None, None

    return _drawn_codes(*arguments) * arguments[1], backward


@compiled
def _drawn_codes(
    x: tf.Tensor, step: tf.Tensor, low: tf.Tensor, high: tf.Tensor, chance: tf.Tensor
) -> tf.Tensor:
    """Codes drawn by inverting their cumulative distribution, of the shape of `x`.

    `chance` holds uniform draws from [0, 1), of the same shape.
    """
    scaled = tf.minimum(tf.maximum(x / step, low), high)
    middle = tf.floor(scaled)
    first = tf.maximum(middle + (1 - REACH), low)
    last = tf.minimum(middle + REACH, high)
    under = below(first - 0.5 - scaled)
    share = under + chance * (below(last + 0.5 - scaled) - under)
    # For a share of 0 or 1 the noise is infinite; the codes are clipped below.
    noise = SIGMA * (tf.math.log(share) - tf.math.log1p(-share))
    return tf.minimum(tf.maximum(floor_half_up(scaled + noise), first), last)


@compiled
def _gradients(
    x: tf.Tensor,
    step: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    chance: tf.Tensor,
    upstream: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradients of `x` and `step` of `code * step`, with the slope of the mean code."""
    scaled = x / step
    clipped = tf.minimum(tf.maximum(scaled, low), high)
    slope = mean_code(clipped, low, high)[1] * tf.cast(scaled == clipped, x.dtype)
    of_step = _drawn_codes(x, step, low, high, chance) - slope * clipped
    return upstream * slope, _sum_like(upstream * of_step, step)


def mean_code(
    scaled: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `sum_c c P(c)` over the six codes nearest to each value, and its slope.

    `P(c)` is a difference of two sigmoids, so that the sum telescopes to one over the
    seven `edges` between codes; beyond the grid these coincide.

    Args:
        scaled: values in steps, between `low` and `high`, any shape.
        low: smallest code, a scalar; codes below it have the probability 0.
        high: largest code, a scalar; codes above it have the probability 0.

    Returns:
        Mean codes and their derivatives, like `scaled`.
    """
    count = 2 * REACH
    # Edges are an axis of one tensor, which XLA turns into one loop.
    ways = np.reshape(np.arange(count + 1), [-1] + [1] * len(scaled.shape))
    first = tf.stop_gradient(tf.floor(scaled)) + (1 - REACH)
    edges = first + tf.constant(ways - 0.5, scaled.dtype)
    edges = tf.minimum(tf.maximum(edges, low - 0.5), high + 0.5)
    share = below(edges - scaled)
    falling = share * (share - 1) / SIGMA
    weights = tf.constant(
        np.where(ways == count, count - 1, -1.0 * (ways > 0)), share.dtype
    )
    ends = tf.constant((ways == count) * 1.0 - (ways == 0), share.dtype)
    over, mass = tf.reduce_sum(share * weights, 0), tf.reduce_sum(share * ends, 0)
    slope = tf.reduce_sum(falling * weights, 0) * mass
    slope -= over * tf.reduce_sum(falling * ends, 0)
    return first + over / mass, slope / tf.square(mass)


def below(distance: tf.Tensor) -> tf.Tensor:
    """Probability that the noise is below a distance in steps, of any shape."""
    return tf.sigmoid(distance / SIGMA)


def _sum_like(values: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Sum of values over the axes along which a step broadcasts, like the step."""
    shape = [1] * (len(values.shape) - len(step.shape)) + step.shape.as_list()
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    return tf.reshape(tf.reduce_sum(values, axes), step.shape)
