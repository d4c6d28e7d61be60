"""The two losses of a single-shot detector: of its scores and of its offsets.

Their sum is `(sum of cross-entropies over positives and hard negatives + sum of smooth
L1 over the offsets of positives) / positives of the batch` (Liu et al., "SSD", ECCV
2016, eq. 1 with alpha = 1).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.distribution import replica_count

IGNORED = -1


@keras.saving.register_keras_serializable("gmpq_tf")
class HardNegativeCrossEntropy(keras.losses.Loss):
    """Cross-entropy over positive boxes and the hardest background boxes.

    A box is positive if it is assigned an object. In each image `ratio` background
    boxes count for each positive one: those with the largest cross-entropy. The sum is
    divided by the mean number of positives per image of the batch. An image without
    objects gives 0.

    Args:
        ratio: background boxes per positive box, 0 or more.
        from_logits: whether scores are logits; else probabilities.
        **kwargs: arguments of `keras.losses.Loss`.
    """

    def __init__(
        self,
        ratio: float = 3.0,
        from_logits: bool = True,
        name: str = "hard_negative_cross_entropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.ratio, self.from_logits = float(ratio), bool(from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each image, [B].

        Args:
            y_true: [B, N]: class from 1; 0: background; -1: ignored.
            y_pred: [B, N, classes + 1], background first.
        """
        labels = tf.cast(y_true, tf.int32)
        scores = tf.cast(y_pred, tf.float32)
        found, empty = labels > 0, tf.equal(labels, 0)
        losses = keras.losses.sparse_categorical_crossentropy(
            tf.maximum(labels, 0), scores, from_logits=self.from_logits
        )
        positives = tf.reduce_sum(tf.cast(found, tf.float32), axis=-1)
        worst = worst_first(tf.where(empty, losses, -1.0))
        hard = empty & (worst < tf.round(self.ratio * positives)[:, None])
        total = tf.reduce_sum(tf.where(found | hard, losses, 0.0), axis=-1)
        return total / mean_positives(positives)

    def get_config(self) -> dict:
        own = {"ratio": self.ratio, "from_logits": self.from_logits}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("gmpq_tf")
class BoxLoss(keras.losses.Loss):
    """Smooth L1 loss of the offsets, summed over positive boxes.

    `sum_i sum_j h(t_ij - p_ij)`, `h(d) = d^2 / 2` up to `|d| = 1`, `|d| - 1/2` above,
    divided by the mean number of positives per image of the batch.

    Args:
        **kwargs: arguments of `keras.losses.Loss`.
    """

    def __init__(self, name: str = "box_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of each image, [B].

        Args:
            y_true: [B, N, 5]: four offsets, and 1 where the box is positive, else 0.
            y_pred: [B, N, 4].
        """
        wanted, marks = tf.cast(y_true[..., :4], tf.float32), y_true[..., 4]
        found = marks > 0.5
        gap = tf.where(found[..., None], wanted - tf.cast(y_pred, tf.float32), 0.0)
        size = tf.abs(gap)
        losses = tf.where(size < 1, gap * gap / 2, size - 0.5)
        positives = tf.reduce_sum(tf.cast(found, tf.float32), axis=-1)
        return tf.reduce_sum(losses, axis=[1, 2]) / mean_positives(positives)


def worst_first(losses: tf.Tensor) -> tf.Tensor:
    """Returns the rank of each box by falling loss.

    Args:
        losses: [B, N].

    Returns:
        float32 [B, N], 0 for the largest loss; equal losses keep their order.
    """
    order = tf.argsort(losses, direction="DESCENDING", stable=True)
    return tf.cast(tf.argsort(order), tf.float32)


def mean_positives(positives: tf.Tensor) -> tf.Tensor:
    """Returns the mean number of positives per image; the batch counts at least one.

    Keras averages the losses of images. After division by this number, the average is
    the sum over the batch divided by all its positives; with several replicas, over
    the images of all of them.

    Args:
        positives: number of positive boxes in each image, [B].
    """
    images = tf.cast(tf.shape(positives)[0], tf.float32)
    total, replicas = tf.reduce_sum(positives), replica_count()
    context = tf.distribute.get_replica_context()
    # The mean is over the whole batch, not over a replica's share of it.
    if replicas > 1 and context is not None:
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
        images = replicas * images
    return tf.maximum(total, 1.0) / tf.maximum(images, 1.0)
