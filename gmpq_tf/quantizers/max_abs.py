"""Symmetric kernels whose step follows the largest weight."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from gmpq_tf.quantizers.grid import finite_step, symmetric_limit
from gmpq_tf.quantizers.kernel_method import GridKernel
from gmpq_tf.quantizers.straight_through import round_half_even, straight_through


def max_abs_step(
    kernel: tf.Tensor, bits: int, axes: Sequence[int] | None = None
) -> tf.Tensor:
    """Step that puts the largest absolute weight on the outermost code.

    `s = max|w| / (2^(b-1) - 1)`, over `axes` (kept with size 1; None: all of them).
    A kernel that is all zero gets a tiny positive step.

    Args:
        kernel: weights, any shape.
        bits: 2 to 8.
        axes: axes that share a step.

    Returns:
        Positive steps that broadcast against the kernel: a scalar, or its shape with
        size 1 along `axes`.
    """
    largest = tf.reduce_max(tf.abs(kernel), axis=axes, keepdims=axes is not None)
    tiny = tf.constant(1e-6, kernel.dtype)
    limit = tf.cast(symmetric_limit(bits), kernel.dtype)
    return finite_step(tf.maximum(largest, tiny) / limit)


class MaxAbs(GridKernel):
    """Quantizes a kernel with `max_abs_step`; the gradient is the identity.

    Args:
        kernel: weights, any shape.
        bits: 2 to 8.
        axes: axes that share a step; along the others each index has its own.

    Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient
    inference", 2018, section 2.3.
    """

    learned = False
    follows_in_graph = True
    uniform = True

    def __call__(
        self, kernel: tf.Tensor, bits: int, axes: Sequence[int] | None = None
    ) -> tf.Tensor:
        """Quantizes a kernel to one bit-width."""
        step = tf.stop_gradient(max_abs_step(kernel, bits, axes))
        limit = tf.cast(symmetric_limit(bits), kernel.dtype)
        codes = kernel / step
        # Rounding may put the largest weight slightly outside; it is clipped, and keeps
        # the gradient 1.
        codes = straight_through(tf.clip_by_value(codes, -limit, limit), codes)
        return round_half_even(codes) * step

    def following_step(
        self, kernel: tf.Tensor, bits: int, axes: Sequence[int]
    ) -> tf.Tensor:
        """`max_abs_step` of the kernel, of a shape that broadcasts against it."""
        return max_abs_step(kernel, bits, axes)


max_abs = MaxAbs()
