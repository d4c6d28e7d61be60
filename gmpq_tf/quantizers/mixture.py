"""Weighted sum of activation quantizers, one fused pass forward and one backward."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable

import tensorflow as tf

from gmpq_tf.quantizers.grid import code_limit, power_of_two
from gmpq_tf.quantizers.straight_through import floor_half_up

# XLA fuses each direction into few loops over the input; compiling takes about 0.2 s a
# shape, so short runs on small tensors are quicker with GMPQ_XLA_QUANTIZERS=0.
USE_XLA = os.environ.get("GMPQ_XLA_QUANTIZERS", "1") != "0"
SLICES = 8 if USE_XLA else 1


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
        grids = [
            step_and_codes(ranges[j], zeros[j], b, signed, nested)
            for j, b in enumerate(bits)
        ]
        several = len(bits) > 1
        pi = [probabilities[j] if several else 1.0 for j in range(len(bits))]
        slope = sum(p * _codes(x, *g)[2] for p, g in zip(pi, grids, strict=True))

        def terms(x, upstream):  # type: ignore[no-untyped-def]
            found = []
            for step, low, high in grids:
                codes, scaled, inside = _codes(x, step, low, high)
                if learn_range:
                    slope_of_range = RANGE_GRADIENTS[method]
                    term = slope_of_range(codes, scaled, inside, low, high)
                    found.append(upstream * term)
                if several:
                    found.append(upstream * codes)
            return found

        sums = _sums(terms, x, upstream)
        range_sums = sums[:: 1 + several] if learn_range else []
        code_sums = sums[1::2] if learn_range else sums
        steps = [step for step, _, _ in grids]
        return (
            upstream * slope,
            tf.stack([p * t for p, t in zip(pi, range_sums, strict=True)])
            if learn_range
            else tf.zeros_like(ranges),
            tf.zeros_like(zeros),
            tf.stack([s * t for s, t in zip(steps, code_sums, strict=True)])
            if several
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


def _sums(
    terms: Callable[..., list[tf.Tensor]], x: tf.Tensor, upstream: tf.Tensor
) -> list[tf.Tensor]:
    """Sum over all elements of each tensor that `terms(x, upstream)` returns.

    Each image is cut into slices and their terms added elementwise before the sum: XLA
    vectorizes that on CPUs, but not a long sum (4 times faster for 7 branches).
    """
    if x.shape.rank < 2 or None in x.shape[1:]:
        return [tf.reduce_sum(term) for term in terms(x, upstream)]
    size = math.prod(x.shape[1:])
    count = next(k for k in (SLICES, 4, 2, 1) if size % k == 0)
    slices = [tf.reshape(t, [-1, count, size // count]) for t in (x, upstream)]
    totals = terms(slices[0][:, 0], slices[1][:, 0])
    for k in range(1, count):
        more = terms(slices[0][:, k], slices[1][:, k])
        totals = [a + b for a, b in zip(totals, more, strict=True)]
    return [tf.reduce_sum(total) for total in totals]
