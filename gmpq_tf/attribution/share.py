"""Which images of a batch are attributed, where not all of them are."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

SALT = 0x6A7C  # makes the seed differ from other draws of the same step


def drawn_images(images: int | tf.Tensor, share: float, step: Any) -> tf.Tensor:
    """Draws the indices of some images of a batch, each image with equal probability.

    So the mean over the drawn images is an unbiased estimate of the mean over the
    batch. The indices are evenly spaced, from a start that is drawn anew in each step.
    The step seeds the draw, so a resumed run draws the same images.

    Args:
        images: number of images in the batch; a scalar tensor where the batch size is
            not known to the graph.
        share: share of the images to draw, above 0, at most 1; at least one is drawn.
        step: number of the training step, a scalar.

    Returns:
        Distinct indices, integers [max(1, round(share * images))]; empty for an empty
        batch.
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
    """`(start + floor(k images / count)) mod images` for each k < count; [count].

    Over all starts each index occurs equally often.

    Args:
        start: first index, below `images`.
        count: number of indices, at most `images`.
        images: number of images in the batch, 1 or more.
    """
    steps = tf.range(count) * images // tf.maximum(count, 1)
    return (start + steps) % images


def batch_size(images: Any) -> int | tf.Tensor:
    """Number of images in a batch: an int where the graph knows it, else a scalar.

    Args:
        images: inputs of a model, [B, ...] each, in any nested structure.
    """
    leaf = tf.convert_to_tensor(keras.tree.flatten(images)[0])
    return tf.shape(leaf)[0] if leaf.shape[0] is None else int(leaf.shape[0])
