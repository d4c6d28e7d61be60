"""Distance between the attribution ranks of a quantized and of the float network."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.metric_names import RANK_DISTANCE


def attribution_ranks(maps: tf.Tensor) -> tf.Tensor:
    """Rank of each pixel: k for the k-th largest; ties are ranked in scan order.

    A constant map so has the ranks 1, 2, 3, ... from the top left to the bottom right.

    Args:
        maps: [B, H, W].

    Returns:
        [B, H * W], integers from 1.
    """
    flat = tf.reshape(maps, [-1, maps.shape[1] * maps.shape[2]])
    order = tf.argsort(-flat, axis=-1, stable=True)
    return tf.argsort(order, axis=-1, stable=True) + 1


def rank_distance(
    student_maps: tf.Tensor, teacher_maps: tf.Tensor, top_k: int = 100
) -> tf.Tensor:
    """Mean `|r(M_q) - r(M_f)|` over the teacher's `top_k` pixels (Fig. 1), per image.

    Args:
        student_maps: [B, H, W].
        teacher_maps: [B, H, W].
        top_k: pixels with the highest attribution in the teacher's map; at most H * W
            are used.

    Returns:
        [B]; 0 where the ranks agree, NaN where a map is not finite.
    """
    student, teacher = attribution_ranks(student_maps), attribution_ranks(teacher_maps)
    counted = tf.cast(teacher <= top_k, tf.float32)
    distance = tf.cast(tf.abs(student - teacher), tf.float32) * counted
    mean = tf.reduce_sum(distance, -1) / tf.reduce_sum(counted, -1)
    finite = tf.math.is_finite(student_maps) & tf.math.is_finite(teacher_maps)
    return tf.where(tf.reduce_all(finite, axis=(1, 2)), mean, np.nan)


@keras.saving.register_keras_serializable("gmpq_tf")
class AttributionRankDistance(keras.metrics.Mean):
    """Mean over images of `rank_distance(student maps, teacher maps)`.

    Args:
        top_k: pixels with the highest attribution in the teacher's map.
    """

    def __init__(
        self, top_k: int = 100, name: str = RANK_DISTANCE, **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.top_k = top_k

    def update_state(
        self,
        teacher_maps: tf.Tensor,
        student_maps: tf.Tensor,
        sample_weight: Any = None,
    ) -> None:
        """Adds a batch of maps, each [B, H, W]."""
        super().update_state(
            rank_distance(student_maps, teacher_maps, self.top_k), sample_weight
        )

    def get_config(self) -> dict:
        return {**super().get_config(), "top_k": self.top_k}
