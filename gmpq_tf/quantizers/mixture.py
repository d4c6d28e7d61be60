"""Weighted sum of activation quantizers, one fused pass forward and one backward."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import tensorflow as tf

from gmpq_tf.quantizers.grid import code_limit, power_of_two
from gmpq_tf.quantizers.straight_through import floor_half_up

# XLA fuses each direction into few loops over the input; compiling takes about 0.2 s a
# shape, so short runs on small tensors are quicker with GMPQ_XLA_QUANTIZERS=0.
USE_XLA = os.environ.get("GMPQ_XLA_QUANTIZERS", "1") != "0"


@functools.cache
def mixture(
    bits: tuple[int, ...],
    signed: bool | None,
    method: str,
    nested: bool,
    learn_range: bool,
) -> Callable[..., tf.Tensor]:
    """The function `x, ranges, zero_codes, probabilities -> sum_j pi_j q_j(x)` (eq. 5).

    Values and gradients are those of the sum of `INPUT_QUANTIZERS[method]`, but only
    the inputs are kept for the backward pass, which recomputes the branches: memory
    does not grow with their number.

    Args:
        bits: bit-width of each branch.
        signed: as for `InputQuantizer`.
        method: "pact" or "lsq": which gradient the ranges get.
        nested: steps are rounded to powers of two.
        learn_range: False: ranges get no gradient.

    Returns:
        A function of `x` (any shape, channels last), `ranges` and `zero_codes`
        [branches], `probabilities` [branches; ignored where there is one branch].
    """

    def forward(x, ranges, zeros, probabilities):  # type: ignore[no-untyped-def]
        total = None
        for j, b in enumerate(bits):
            step, low, high = step_and_codes(ranges[j], zeros[j], b, signed, nested)
            codes, _, _ = _codes(x, step, low, high)
            q = codes * (step * probabilities[j] if len(bits) > 1 else step)
            total = q if total is None else total + q
        return total

    def backward(x, ranges, zeros, probabilities, upstream):  # type: ignore[no-untyped-def]
        slope, range_grads, probability_grads = None, [], []
        for j, b in enumerate(bits):
            step, low, high = step_and_codes(ranges[j], zeros[j], b, signed, nested)
            codes, scaled, inside = _codes(x, step, low, high)
            pi = probabilities[j] if len(bits) > 1 else tf.ones([], x.dtype)
            slope = inside * pi if slope is None else slope + inside * pi
            if learn_range:
                term = RANGE_GRADIENTS[method](codes, scaled, inside, low, high)
                range_grads.append(pi * _sum(upstream * term))
            if len(bits) > 1:
                probability_grads.append(step * _sum(upstream * codes))
        return (
            upstream * slope,
            tf.stack(range_grads) if range_grads else tf.zeros_like(ranges),
            tf.zeros_like(zeros),
            tf.stack(probability_grads)
            if probability_grads
            else tf.zeros_like(probabilities),
        )

    if USE_XLA:
        forward = tf.function(forward, jit_compile=True, autograph=False)
        backward = tf.function(backward, jit_compile=True, autograph=False)

    @tf.custom_gradient
    def call(x, ranges, zeros, probabilities):  # type: ignore[no-untyped-def]
        inputs = (x, ranges, zeros, probabilities)
        return forward(*inputs), lambda upstream: backward(*inputs, upstream)

    return call


def step_and_codes(
    input_range: tf.Tensor,
    zero_code: tf.Tensor,
    bits: int,
    signed: bool | None,
    nested: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Step, smallest and largest code of an activation grid; value = code * step."""
    limit = tf.cast(code_limit(bits, bool(signed)), input_range.dtype)
    step = input_range / limit
    if nested:
        step = power_of_two(step)
    if signed is None:
        return step, -zero_code, limit - zero_code
    return step, -limit if signed else tf.zeros_like(limit), limit


def lsq_range_gradient(codes, scaled, inside, low, high):  # type: ignore[no-untyped-def]
    """`dq/da` of LSQ: `(round(v) - v) / hi` inside, `lo / hi` or 1 outside."""
    return (codes - inside * scaled) / high


def pact_range_gradient(codes, scaled, inside, low, high):  # type: ignore[no-untyped-def]
    """`dq/da` of PACT: 1 at and above the range, -1 below a signed one, else 0."""
    above = tf.cast(scaled >= high, scaled.dtype)
    below = tf.cast(scaled <= low, scaled.dtype)
    return above - below * tf.cast(low < 0, scaled.dtype)


RANGE_GRADIENTS: dict[str, Callable] = {
    "pact": pact_range_gradient,
    "lsq": lsq_range_gradient,
}


def _codes(
    x: tf.Tensor, step: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Codes, `x / step`, and 1 where that lies on the grid's range, else 0."""
    scaled = x / step
    clipped = tf.minimum(tf.maximum(scaled, low), high)
    inside = tf.cast(tf.equal(clipped, scaled), x.dtype)
    return floor_half_up(clipped), scaled, inside


def _sum(x: tf.Tensor) -> tf.Tensor:
    """Sum of all elements, channels last: column sums first, because they vectorize."""
    return tf.reduce_sum(tf.reduce_sum(x, axis=list(range(x.shape.rank - 1))))
