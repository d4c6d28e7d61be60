"""PACT: activations clipped to a learned range."""

from __future__ import annotations

import tensorflow as tf

from gmpq_tf.quantizers.grid import code_limit, lowest_code
from gmpq_tf.quantizers.input_method import GridInput
from gmpq_tf.quantizers.mixture import pact_step_gradient
from gmpq_tf.quantizers.straight_through import round_half_up, straight_through


class Pact(GridInput):
    """Quantizes activations to `bits` with the PACT gradient.

    `y = clip(x, 0, a)`, `q = round(y / s) s` with `s = a / (2^b - 1)`;
    `dq/dx = 1` inside the range and 0 outside, `dq/da = 1` where `x >= a`, else 0.
    Signed: `s = a / (2^(b-1) - 1)`, `y = clip(x, -2^(b-1) s, a)`, and `dq/da` below the
    range is the slope of that bound, `-2^(b-1) / (2^(b-1) - 1)`.

    Args:
        x: activations, any shape.
        input_range: `a > 0`, a scalar in the units of `x`.
        bits: 2 to 8.
        signed: whether the grid has negative codes.

    Returns:
        Tensor like `x` with at most `2^bits` distinct values.

    Source: Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural
    Networks", 2018, equations 1-3.
    """

    step_gradient = staticmethod(pact_step_gradient)
    learns_inside = False

    def __call__(
        self, x: tf.Tensor, input_range: tf.Tensor, bits: int, signed: bool = False
    ) -> tf.Tensor:
        """Quantizes `x` to one bit-width."""
        limit = tf.cast(code_limit(bits, signed), x.dtype)
        low = input_range * (tf.cast(lowest_code(bits, signed), x.dtype) / limit)
        clipped = tf.minimum(tf.maximum(x, low), input_range)
        step = tf.stop_gradient(input_range) / limit
        codes = round_half_up(tf.stop_gradient(clipped) / step)
        return straight_through(codes * step, clipped)


pact = Pact()
