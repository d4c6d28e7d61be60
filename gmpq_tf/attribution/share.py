"""Which images of a batch are attributed, where not all of them are."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

SALT = 0x6A7C  # so that no other draw of the same step has the same seed


def drawn_images(images: int | tf.Tensor, share: float, step: Any) -> tf.Tensor:
    """Places of images drawn from a batch, each image as likely as any other.

    A mean over them is an unbiased estimate of the mean over the batch. They lie evenly
    over the batch, from a start that is drawn anew in each step; a run that is resumed
    draws as it would have.

    Args:
        images: in the batch; a number, or a scalar tensor where the graph is for any.
        share: how many are drawn of them, above 0, at most 1; one at least.
        step: number of the training step, which seeds the draw, a scalar.

    Returns:
        Different places, integers [max(1, round(share * images))]; none of no image.
    """
    if isinstance(images, int):
        count: Any = min(images, max(1, int(share * images + 0.5)))
    else:
        wanted = tf.cast(share * tf.cast(images, tf.float32) + 0.5, tf.int32)
        count = tf.minimum(images, tf.maximum(1, wanted))
    seed = tf.stack([tf.cast(step, tf.int32), SALT])
    some = tf.maximum(images, 1)
    start = tf.random.stateless_uniform([], seed, maxval=some, dtype=tf.int32)
    return spread(start, count, some)


def spread(start: Any, count: Any, images: Any) -> tf.Tensor:
    """`(start + floor(k images / count)) mod images`, [count], for each k below it.

    Over all starts each place comes up equally often.

    Args:
        start: of the first, below `images`.
        count: of places, at most `images`.
        images: in the batch, 1 or more.
    """
    steps = tf.range(count) * images // tf.maximum(count, 1)
    return (start + steps) % images


def batch_size(images: Any) -> int | tf.Tensor:
    """Images in a batch: a number where the graph knows it, else a scalar tensor.

    Args:
        images: inputs of a model, nested, [B, ...] each.
    """
    leaf = tf.convert_to_tensor(keras.tree.flatten(images)[0])
    return tf.shape(leaf)[0] if leaf.shape[0] is None else int(leaf.shape[0])
