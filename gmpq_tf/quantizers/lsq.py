"""LSQ: a learned quantization step for activations and kernels."""

from __future__ import annotations

import tensorflow as tf

from gmpq_tf.quantizers.grid import code_limit, lowest_code, symmetric_limit
from gmpq_tf.quantizers.input_method import GridInput
from gmpq_tf.quantizers.kernel_method import GridKernel
from gmpq_tf.quantizers.mixture import lsq_step_gradient
from gmpq_tf.quantizers.straight_through import round_half_even, round_half_up


class Lsq(GridInput):
    """Quantizes activations to `bits` with the LSQ gradient.

    `v = clip(x / s, lo, hi)`, `q = round(v) s` with `s = a / hi`;
    `dq/dx = 1` inside, 0 outside; `dq/ds = round(v) - v` inside, `lo` or `hi` outside.

    Args:
        x: activations, any shape.
        input_range: `a = hi * s > 0`, a scalar in the units of `x`.
        bits: 2 to 8.
        signed: codes `-2^(b-1) .. 2^(b-1)-1` instead of `0 .. 2^b-1`.

    Returns:
        Tensor like `x` with at most `2^bits` distinct values.

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 1-3.
    Unlike the paper the learned variable is the logarithm of the range, so that one
    learning rate suits every scale.
    """

    step_gradient = staticmethod(lsq_step_gradient)

    def __call__(
        self, x: tf.Tensor, input_range: tf.Tensor, bits: int, signed: bool = False
    ) -> tf.Tensor:
        """Quantizes `x` to one bit-width."""
        limit = tf.cast(code_limit(bits, signed), x.dtype)
        step, low = input_range / limit, tf.cast(lowest_code(bits, signed), x.dtype)
        codes = tf.minimum(tf.maximum(x / step, low), limit)
        return round_half_up(codes) * step


class LsqKernel(GridKernel):
    """Quantizes a kernel to the codes `-(2^(b-1)-1) .. 2^(b-1)-1` of a learned step.

    Args:
        kernel: weights, any shape.
        step: positive; broadcasts against `kernel` (a scalar, or one per channel).
        bits: 2 to 8.

    Source: Esser et al., ICLR 2020, equations 1-3. Unlike the paper the grid is
    symmetric (one code fewer), as TFLite stores kernels.
    """

    uniform = True

    def __call__(self, kernel: tf.Tensor, step: tf.Tensor, bits: int) -> tf.Tensor:
        """Quantizes a kernel to one bit-width."""
        limit = tf.cast(symmetric_limit(bits), kernel.dtype)
        codes = tf.minimum(tf.maximum(kernel / step, -limit), limit)
        return round_half_even(codes) * step


lsq, lsq_kernel = Lsq(), LsqKernel()


def scale_gradient(value: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Returns `value` with its gradient multiplied by `factor` (LSQ, section 2.2).

    Args:
        value: float of any shape.
        factor: scalar, 0 or more.
    """
    factor = tf.cast(factor, value.dtype)
    scaled = value * factor
    # In this order the value keeps every bit: what is added to it is exactly 0.
    return tf.stop_gradient(value) + (scaled - tf.stop_gradient(scaled))
