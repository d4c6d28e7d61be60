"""Steps fitted to a batch as a TensorFlow graph, as tf_keras layers need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from gmpq_tf.quantizers.grid import power_of_two


def least_error_step(
    values: tf.Tensor,
    largest: tf.Tensor,
    quantize: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    fractions: np.ndarray,
    nested: bool = False,
    axes: Sequence[int] = (0,),
) -> tf.Tensor:
    """`line_search.least_error_step` as a TensorFlow graph.

    Args:
        values: values to quantize, any shape.
        largest: steps that clip nothing, of a shape that broadcasts to the values.
        quantize: (values, steps) -> quantized values, of the shape of the values.
        fractions: fractions of the largest step to try, [n].
        nested: whether only powers of two are tried.
        axes: axes of the values that share a step.

    Returns:
        Positive steps, of the shape of `largest`.
    """
    tried = tf.constant(fractions, tf.float32)

    def try_next(
        i: tf.Tensor, best: tf.Tensor, least: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        step = largest * tried[i]
        step = power_of_two_above(step) if nested else step
        squares = tf.square(quantize(values, step) - values)
        error = tf.reshape(tf.reduce_sum(squares, axis=axes), tf.shape(step))
        better = tf.where(error < least, step, best)
        return i + 1, better, tf.minimum(error, least)

    start = (0, largest, tf.fill(tf.shape(largest), np.float32(np.inf)))
    return tf.while_loop(lambda i, *_: i < len(fractions), try_next, start)[1]


def power_of_two_above(step: tf.Tensor) -> tf.Tensor:
    """The smallest power of two that is not below a step, of its shape."""
    near = power_of_two(step)
    return tf.where(near < step, 2.0 * near, near)
