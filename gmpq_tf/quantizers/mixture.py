"""Weighted sum of quantizers, one fused pass forward and one backward."""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from gmpq_tf.quantizers.fused import compiled, sums
from gmpq_tf.quantizers.grid import (
    code_limit,
    finite_step,
    lowest_code,
    power_of_two,
)
from gmpq_tf.quantizers.straight_through import floor_half_up


def mixture(
    bits: tuple[int, ...],
    signed: bool | None,
    method: str,
    nested: bool,
    learn_range: bool,
) -> Callable[..., tf.Tensor]:
    """The function `x, ranges, zero_codes, probabilities -> sum_j pi_j q_j(x)` (eq. 5).

    Values and gradients are those of the sum of `pact` or of `lsq`.

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
    add = weighted_sum(len(bits), method if learn_range else None)

    def call(x, ranges, zeros, probabilities):  # type: ignore[no-untyped-def]
        grids = [
            step_and_codes(ranges[j], zeros[j], b, signed, nested)
            for j, b in enumerate(bits)
        ]
        steps, lows, highs = (tf.stack(column) for column in zip(*grids, strict=True))
        return add(x, steps[:, None], lows, highs, probabilities)

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
    step = finite_step(input_range / limit)
    if nested:
        step = power_of_two(step)
    if signed is None:
        return step, -zero_code, limit - zero_code
    return step, tf.cast(lowest_code(bits, signed), limit.dtype), limit


@functools.cache
def weighted_sum(
    branches: int, gradient: str | None, half_even: bool = False, clip: bool = True
) -> Callable[..., tf.Tensor]:
    """The function `x, steps, lows, highs, weights -> sum_j w_j q_j(x)`.

    `q_j(x) = round(min(max(x / s_j, lo_j), hi_j)) s_j`. Only the inputs are kept for
    the backward pass, which recomputes the branches: memory does not grow with their
    number. (Without XLA, what is computed meanwhile does: it is not fused.)

    Args:
        branches: number of terms; a single one has weight 1.
        gradient: a name in `STEP_GRADIENTS`; None: steps get no gradient.
        half_even: round halves to even instead of up.
        clip: False: the gradient of `x` is that of the identity everywhere, for steps
            that follow the largest value.

    Returns:
        A function of `x` (channels last), `steps` [branches, channels or 1], `lows`,
        `highs` and `weights` [branches].
    """
    several = branches > 1
    rounded = tf.round if half_even else floor_half_up

    # Branches are an axis, not terms written out one by one: XLA turns it into a loop
    # of one body, which compiles faster and leaves less behind (a quarter for seven).
    def branches_of(x, steps, lows, highs):  # type: ignore[no-untyped-def]
        """`x / step` as it is and clipped, each [branches, rows, channels]."""
        scaled = x * (1 / steps[:, None])  # one division instead of one an element
        return scaled, tf.minimum(tf.maximum(scaled, column(lows)), column(highs))

    @compiled
    def forward(x, steps, lows, highs, weights):  # type: ignore[no-untyped-def]
        rows = tf.reshape(x, [-1, steps.shape[1]])
        _, clipped = branches_of(rows, steps, lows, highs)
        scales = (steps * weights[:, None])[:, None]
        return tf.reshape(tf.reduce_sum(rounded(clipped) * scales, 0), tf.shape(x))

    @compiled
    def input_gradient(x, steps, lows, highs, weights, upstream):  # type: ignore[no-untyped-def]
        rows = tf.reshape(x, [-1, steps.shape[1]])
        scaled, clipped = branches_of(rows, steps, lows, highs)
        # No comparison: a reduction of comparisons is not vectorized.
        inside = 1 - tf.sign(tf.abs(scaled - clipped))
        share = tf.reduce_sum(inside * column(weights), 0)
        return upstream * tf.reshape(share, tf.shape(x))

    def terms_to_sum(grids, x, upstream):  # type: ignore[no-untyped-def]
        steps, lows, highs = grids
        scaled, clipped = branches_of(x, steps, lows, highs)
        codes = rounded(clipped)
        found = []
        if gradient is not None:
            inside = tf.cast(tf.equal(clipped, scaled), x.dtype)
            slope = STEP_GRADIENTS[gradient](
                codes, clipped, inside, column(lows), column(highs)
            )
            found.append(upstream * slope)
        if several:
            found.append(upstream * codes)
        return found

    @compiled
    def parameter_gradients(x, steps, lows, highs, weights, upstream):  # type: ignore[no-untyped-def]
        of_steps, of_weights = tf.zeros_like(steps), tf.zeros_like(weights)
        channels = steps.shape[1]
        totals = sums(terms_to_sum, (steps, lows, highs), (x, upstream), channels)
        if gradient is not None:
            of_steps = weights[:, None] * totals[0]
        if several:
            of_weights = tf.reduce_sum(steps * totals[-1], axis=1)
        return of_steps, of_weights

    @tf.custom_gradient
    def call(x, steps, lows, highs, weights):  # type: ignore[no-untyped-def]
        inputs = (x, steps, lows, highs, weights)

        def backward(upstream):  # type: ignore[no-untyped-def]
            of_steps, of_weights = tf.zeros_like(steps), tf.zeros_like(weights)
            if gradient is not None or several:
                of_steps, of_weights = parameter_gradients(*inputs, upstream)
            # Apart, so that a second derivative of the first walks no loop of sums.
            of_x = input_gradient(*inputs, upstream) if clip else upstream
            return of_x, of_steps, tf.zeros_like(lows), tf.zeros_like(highs), of_weights

        return forward(*inputs), backward

    if several:
        return call
    return lambda x, *grid_and_weights: call(
        x, *grid_and_weights[:3], tf.ones([1], x.dtype)
    )


def column(values: tf.Tensor) -> tf.Tensor:
    """[branches] as [branches, 1, 1]."""
    return values[:, None, None]


def lsq_step_gradient(codes, clipped, inside, low, high):  # type: ignore[no-untyped-def]
    """`dq/ds` of LSQ: `round(v) - v` inside, `lo` or `hi` outside."""
    return codes - inside * clipped  # finite even where `x / step` overflows


def pact_step_gradient(codes, clipped, inside, low, high):  # type: ignore[no-untyped-def]
    """`dq/ds` of PACT: `hi` at and above the range, `lo` at and below a signed one."""
    beyond = tf.where(clipped <= low, low, tf.zeros_like(clipped))
    return tf.where(clipped >= high, high, beyond)


STEP_GRADIENTS: dict[str, Callable] = {
    "pact": pact_step_gradient,
    "lsq": lsq_step_gradient,
}
