"""Weighted sum of quantizers: one fused pass forward, one backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from gmpq_tf.quantizers.fused import chunk_rows, compiled, sums
from gmpq_tf.quantizers.grid import (
    code_limit,
    finite_step,
    lowest_code,
    power_of_two,
)
from gmpq_tf.quantizers.straight_through import floor_half_up

# `(codes, clipped, inside, low, high) -> dq/ds`: codes, clipped values in steps, and 1
# for values inside the range, each [branches, rows, channels]; smallest and largest
# code, [branches, 1, 1]. The result has the shape of the codes.
StepGradient = Callable[..., tf.Tensor]
Rounded = Callable[[tf.Tensor], tf.Tensor]


def mixture(
    bits: tuple[int, ...],
    signed: bool | None,
    gradient: str | StepGradient,
    nested: bool,
    learn_range: bool,
) -> Callable[..., tf.Tensor]:
    """The function `x, ranges, zero_codes, probabilities -> sum_j pi_j q_j(x)` (eq. 5).

    Args:
        bits: bit-width of each branch.
        signed: as for `InputQuantizer`.
        gradient: gradient of the steps: a name in `STEP_GRADIENTS`, or such a function.
        nested: steps are rounded to powers of two.
        learn_range: False: ranges get no gradient.

    Returns:
        A function of `x` (any shape, channels last), `ranges` [branches], `zero_codes`
        [branches] and `probabilities` [branches] (ignored for a single branch).
    """
    slope = STEP_GRADIENTS[gradient] if isinstance(gradient, str) else gradient
    add = weighted_sum(len(bits), slope if learn_range else None)

    def call(
        x: tf.Tensor, ranges: tf.Tensor, zeros: tf.Tensor, probabilities: tf.Tensor
    ) -> tf.Tensor:
        steps, lows, highs = steps_and_codes(ranges, zeros, bits, signed, nested)
        return add(x, tf.reshape(steps, [-1, 1]), lows, highs, probabilities)

    return call


def steps_and_codes(
    ranges: tf.Tensor,
    zeros: tf.Tensor,
    bits: Sequence[int],
    signed: bool | None,
    nested: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Steps, smallest and largest codes of activation grids, [branches] each.

    All branches are computed at once, since a graph per branch would take several times
    as long to trace.

    Args:
        ranges: value of the largest code of each branch, [branches].
        zeros: codes of the zero, [branches]; used where `signed` is None.
        bits: bit-width of each branch.
        signed: as for `InputQuantizer`.
        nested: steps are rounded to powers of two.
    """
    # In the float type of the ranges, which is that of the values. bfloat16 has too few
    # digits for 8-bit steps, so the layers cast to float32 before they quantize.
    limits = [float(code_limit(b, bool(signed))) for b in bits]
    highs = tf.constant(limits, ranges.dtype)
    steps = finite_step(ranges / highs)
    if nested:
        steps = power_of_two(steps)
    if signed is None:
        return steps, -zeros, highs - zeros
    lows = [float(lowest_code(b, signed)) for b in bits]
    return steps, tf.constant(lows, ranges.dtype), highs


@functools.cache
def weighted_sum(
    branches: int,
    step_gradient: StepGradient | None,
    rounded: Rounded = floor_half_up,
    clip: bool = True,
) -> WeightedSum:
    """The `WeightedSum` of these settings; cached, so that it is compiled only once."""
    return WeightedSum(branches, step_gradient, rounded, clip)


class WeightedSum:
    """The function `x, steps, lows, highs, weights -> sum_j w_j q_j(x)`.

    `q_j(x) = round(min(max(x / s_j, lo_j), hi_j)) s_j`. Only the inputs are kept for
    the backward pass, which computes the branches again, so memory does not grow with
    their number. (Without XLA the temporaries do, since nothing is fused.)

    The branches are an axis of one tensor, not separate terms: XLA turns that into one
    loop, which compiles faster and, for seven branches, needs a quarter of the
    temporaries.

    Args:
        branches: number of terms; a single one has weight 1.
        step_gradient: such as `lsq_step_gradient`; None: steps get no gradient.
        rounded: rounds clipped values in steps, [branches, rows, channels], to codes;
            always the same object, since compiled functions are cached by it.
        clip: False: the gradient of `x` is 1 everywhere, for steps that follow the
            largest value.
    """

    def __init__(
        self,
        branches: int,
        step_gradient: StepGradient | None,
        rounded: Rounded,
        clip: bool,
    ) -> None:
        self.branches, self.several = branches, branches > 1
        self.step_gradient = step_gradient
        self.rounded = rounded
        self.clip = clip
        # Of any size: traced for each of a network's shapes, they would take a tenth of
        # the time to its first step.
        self._forward = compiled(self.forward, any_size=True)
        self._input_gradient = compiled(self.input_gradient, any_size=True)
        self._parameter_gradients = functools.cache(self._made_gradients)
        self._call = tf.custom_gradient(self._value_and_backward)

    def __call__(
        self,
        x: tf.Tensor,
        steps: tf.Tensor,
        lows: tf.Tensor,
        highs: tf.Tensor,
        weights: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The weighted sum, differentiable any number of times.

        Args:
            x: any shape, channels last.
            steps: positive, [branches, channels or 1].
            lows: smallest codes, [branches].
            highs: largest codes, [branches].
            weights: [branches]; ignored for a single branch.

        Returns:
            A tensor like `x`.
        """
        if not self.several:
            weights = tf.ones([1], x.dtype)
        return self._call(x, steps, lows, highs, weights)

    def _value_and_backward(self, *inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        # `backward` reads the arguments only, not what the forward pass computed: a
        # graph keeps every tensor that the backward pass reads, and scaled and clipped
        # values, codes and masks of all branches would be some thirty tensors of the
        # activation's size.
        def backward(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
            of_x, of_steps, of_weights = upstream, None, None
            if self.step_gradient is not None or self.several:
                channels = steps.shape[1]
                gradients = self._parameter_gradients(channels, chunk_rows(x, channels))
                of_steps, of_weights = gradients(*inputs, upstream)
                of_steps.set_shape(steps.shape)
                of_weights.set_shape(weights.shape)
            # Apart from the parameters' gradients: Grad-CAM differentiates the input's
            # gradient again, and need not go through their loop of sums for it.
            if self.clip:
                of_x = self._input_gradient(*inputs, upstream)
                of_x.set_shape(x.shape)
            return of_x, of_steps, None, None, of_weights

        x, steps, _, _, weights = inputs
        value = self._forward(*inputs)
        value.set_shape(x.shape)
        return value, backward

    def _made_gradients(self, channels: int, rows: int) -> Callable:
        """`parameter_gradients` for inputs of any size, with some arguments given."""

        def gradients(*tensors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self.parameter_gradients(channels, rows, *tensors)

        return compiled(gradients, any_size=True, whole=False)

    def forward(
        self,
        x: tf.Tensor,
        steps: tf.Tensor,
        lows: tf.Tensor,
        highs: tf.Tensor,
        weights: tf.Tensor,
    ) -> tf.Tensor:
        """The weighted sum, of the shape of `x`."""
        # [rows, channels] where channels have their own steps, else [elements, 1]: with
        # the branches as a third axis in front, XLA fuses all that follows into one
        # loop.
        rows = tf.reshape(x, [-1, tf.shape(steps)[1]])
        _, clipped = scaled_and_clipped(rows, steps, lows, highs)
        scales = (steps * weights[:, None])[:, None]  # one product per element
        total = tf.reduce_sum(self.rounded(clipped) * scales, 0)
        return tf.reshape(total, tf.shape(x))

    def input_gradient(
        self,
        x: tf.Tensor,
        steps: tf.Tensor,
        lows: tf.Tensor,
        highs: tf.Tensor,
        weights: tf.Tensor,
        upstream: tf.Tensor,
    ) -> tf.Tensor:
        """`upstream`, any shape, times the weight of the branches that do not clip."""
        rows = tf.reshape(x, [-1, tf.shape(steps)[1]])
        scaled, clipped = scaled_and_clipped(rows, steps, lows, highs)
        # 1 inside and 0 outside, without a comparison: XLA does not vectorize a sum of
        # comparisons.
        inside = 1 - tf.sign(tf.abs(scaled - clipped))
        share = tf.reduce_sum(inside * column(weights), 0)
        return upstream * tf.reshape(share, tf.shape(x))

    def parameter_gradients(
        self,
        channels: int,
        rows: int,
        x: tf.Tensor,
        steps: tf.Tensor,
        lows: tf.Tensor,
        highs: tf.Tensor,
        weights: tf.Tensor,
        upstream: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Gradients of the steps [branches, channels] and weights [branches].

        `channels` is 1 where all have the same steps; `rows` are those of `chunk_rows`.
        """
        steps.set_shape([self.branches, channels])
        for values in (lows, highs, weights):
            values.set_shape([self.branches])
        of_steps, of_weights = tf.zeros_like(steps), tf.zeros_like(weights)
        # The codes are computed a third time here: these sums walk the input in chunks
        # that fit a processor's cache, an order in which the gradient of the input
        # could not be written efficiently.
        grids = (steps, lows, highs)
        totals = sums(self._terms, grids, (x, upstream), channels, rows)
        if self.step_gradient is not None:
            of_steps = weights[:, None] * totals[0]
        if self.several:
            of_weights = tf.reduce_sum(steps * totals[-1], axis=1)
        return of_steps, of_weights

    def _terms(
        self, grids: Sequence[tf.Tensor], x: tf.Tensor, upstream: tf.Tensor
    ) -> list[tf.Tensor]:
        """Summands of `parameter_gradients`, [branches, rows, channels] each."""
        steps, lows, highs = grids
        scaled, clipped = scaled_and_clipped(x, steps, lows, highs)
        codes = self.rounded(clipped)
        found = []
        if self.step_gradient is not None:
            inside = tf.cast(tf.equal(clipped, scaled), x.dtype)
            slope = self.step_gradient(
                codes, clipped, inside, column(lows), column(highs)
            )
            found.append(upstream * slope)
        if self.several:
            found.append(upstream * codes)
        return found


def scaled_and_clipped(
    x: tf.Tensor, steps: tf.Tensor, lows: tf.Tensor, highs: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """`x / step` before and after clipping, [branches, rows, channels] each."""
    scaled = x * (1 / steps[:, None])  # one division per step, not per element
    return scaled, tf.minimum(tf.maximum(scaled, column(lows)), column(highs))


def column(values: tf.Tensor) -> tf.Tensor:
    """Reshapes [branches] to [branches, 1, 1]."""
    return values[:, None, None]


def lsq_step_gradient(
    codes: tf.Tensor,
    clipped: tf.Tensor,
    inside: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
) -> tf.Tensor:
    """`dq/ds` of LSQ, any shape: `round(v) - v` inside, `lo` or `hi` outside."""
    return codes - inside * clipped  # finite even where `x / step` overflows


def pact_step_gradient(
    codes: tf.Tensor,
    clipped: tf.Tensor,
    inside: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
) -> tf.Tensor:
    """`dq/ds` of PACT, any shape: `hi` above the range, `lo` below, 0 inside."""
    beyond = tf.where(clipped <= low, low, tf.zeros_like(clipped))
    return tf.where(clipped >= high, high, beyond)


STEP_GRADIENTS: dict[str, StepGradient] = {
    "pact": pact_step_gradient,
    "lsq": lsq_step_gradient,
}
