"""A generalization risk on how well classes are separated (after SEAM)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from gmpq_tf.search.attribution_risk import Generalization
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.risks import Step, taken


class Margin(Generalization):
    """`R_G = relu(S_q - S_f)`: how much worse the hypernet separates the classes.

    `S = mean |f - c_y|^2 / mean_(k != y) |c_y - c_k|^2`, with the pooled last feature
    map `f` and the mean `c_k` of each class in the batch. It is small where classes are
    compact and far apart. Batches need several images of a class.

    This is a reconstruction from the abstract of "SEAM: Searching Transferable
    Mixed-Precision Quantization Policy through Large Margin Regularization", ACM MM
    2023, which names compactness within classes and separation between them, but no
    formula.

    Raises:
        StrategyError: predicted classes are asked for, or the model is a detector.
    """

    of_image = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.map_count = self.rank_metric = None  # there are no maps
        if self.of_boxes:
            raise StrategyError(
                "A margin is between images of one class each. Received: "
                f"generalization='margin' for {self.teacher.name!r}, a detector. Take "
                "generalization='attribution', or search on a classifier."
            )
        if self.config.attribution_class == "predicted":
            raise StrategyError(
                "A margin is between the classes of the labels. Received: "
                "generalization='margin', attribution_class='predicted'. Leave the "
                "latter out, or take generalization='attribution'."
            )

    def forward(
        self, images: Any, labels: Any, drawn: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Output of the hypernet in training, and its separation, a scalar."""
        parts = self.student_parts
        feature = parts.backbone(images, training=True)
        output = parts.head(feature, training=True)
        classes = self.classes(labels)
        return _output(output), self._separated(*taken((feature, classes), drawn))

    def teacher_maps(
        self, images: Any, labels: Any, drawn: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Separation of the float model, a scalar; arguments as those of `forward`."""
        images, classes = taken((images, self.classes(labels)), drawn)
        feature = self.teacher_parts.backbone(images, training=False)
        return tf.stop_gradient(self._separated(feature, classes))

    def value(self, step: Step) -> tf.Tensor:
        """By how much the hypernet's `S` exceeds the float model's, a scalar >= 0."""
        assert step.maps is not None and step.teacher_maps is not None
        return tf.nn.relu(step.maps - step.teacher_maps)

    def update(self, step: Step) -> None:
        """Does nothing, since there are no maps to rank."""

    def _separated(self, feature: tf.Tensor, classes: tf.Tensor | None) -> tf.Tensor:
        assert classes is not None
        axes = list(range(1, len(feature.shape) - 1))
        pooled = tf.reduce_mean(tf.cast(feature, tf.float32), axes)
        return separation(pooled, classes, max(self.num_scores, 2))


def separation(features: tf.Tensor, classes: tf.Tensor, count: int) -> tf.Tensor:
    """Squared spread within classes over the squared distance between them (`S`).

    Args:
        features: pooled features, [B, C].
        classes: class numbers, integers [B]; images with other numbers are ignored.
        count: number of classes.

    Returns:
        Scalar >= 0; 0 where the batch has fewer than two classes.
    """
    member = tf.one_hot(classes, count, dtype=features.dtype)  # [B, K]
    sizes = tf.reduce_sum(member, 0)
    total = tf.reduce_sum(sizes)
    centers = tf.matmul(member, features, transpose_a=True)
    centers /= tf.maximum(sizes, 1.0)[:, None]
    inside = tf.reduce_sum(member, 1, keepdims=True)
    within = tf.reduce_sum(inside * tf.square(features - member @ centers))
    squares = tf.reduce_sum(tf.square(centers), 1)
    apart = squares[:, None] + squares[None]
    apart -= 2 * tf.matmul(centers, centers, transpose_b=True)
    there = tf.cast(sizes > 0, features.dtype)
    pairs = sizes[:, None] * there[None] * (1 - tf.eye(count, dtype=features.dtype))
    number = tf.reduce_sum(pairs)
    between = tf.reduce_sum(pairs * apart) / tf.maximum(number, 1.0)
    # If all centers coincide, their distance is bounded relative to the features' size.
    least = 1e-6 * tf.reduce_mean(tf.square(features)) + 1e-12
    ratio = within / tf.maximum(total, 1.0) / tf.maximum(between, least)
    return tf.where(number > 0, ratio, tf.zeros_like(ratio))


def _output(outputs: Any) -> tf.Tensor:
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs
