"""The one gradient trick of the library: the straight-through estimator."""

from __future__ import annotations

import tensorflow as tf


def straight_through(value: tf.Tensor, surrogate: tf.Tensor) -> tf.Tensor:
    """Returns `value` with the gradient of `surrogate`.

    `surrogate + stop_gradient(value - surrogate)`; exact in every float type when
    `value` is `surrogate` rounded to an integer (the difference is then representable).

    Args:
        value: tensor of any shape, returned in the forward pass.
        surrogate: tensor of the same shape, differentiated instead.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation", 2013.
    """
    return surrogate + tf.stop_gradient(value - surrogate)


def round_half_up(x: tf.Tensor) -> tf.Tensor:
    """Rounds to the nearest integer, halves upwards, with the identity's gradient.

    Activations use it because int8 kernels that move a tensor to a coarser grid round
    halves up, so training and deployment agree on ties.

    Args:
        x: codes, float of any shape.

    Returns:
        Whole numbers of the shape and type of `x`.
    """
    return straight_through(floor_half_up(x), x)


def floor_half_up(x: tf.Tensor) -> tf.Tensor:
    """`floor(x + 1/2)`, without a gradient of its own; any shape, type of `x`."""
    # bfloat16 has no room for the half beside codes above 128.
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    return tf.cast(tf.floor(wide + tf.constant(0.5, wide.dtype)), x.dtype)


def round_half_even(x: tf.Tensor) -> tf.Tensor:
    """Rounds to the nearest integer, halves to even, with the identity's gradient.

    Kernels use it: it is odd-symmetric, so `q(-w) = -q(w)` everywhere.

    Args:
        x: codes, float of any shape.

    Returns:
        Whole numbers of the shape and type of `x`.
    """
    return straight_through(tf.round(x), x)
