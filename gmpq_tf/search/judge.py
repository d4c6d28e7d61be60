"""The risk of each image, computed according to what the outputs of a model mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.task import Binary, Classes, TaskError, match_labels, outputs_of
from gmpq_tf.task.tasks import divergence_of

_LEAST = 1e-7  # least probability inside a logarithm, as in Keras


class Judge:
    """Compares outputs with labels, and with those of the float model.

    Args:
        model: the float model.
        outputs: its outputs for some images, arrays [B, ...], in its order.
        labels: labels of these images, as for `match_labels`; None: there are none.
        output_kinds: what the outputs mean, as `outputs_of` takes it; None: derived.

    Raises:
        TaskError: labels do not fit the outputs.
    """

    def __init__(
        self,
        model: keras.Model,
        outputs: Sequence[np.ndarray],
        labels: Any = None,
        output_kinds: Any = None,
    ) -> None:
        self.outputs = outputs_of(model, output_kinds, labels)
        self._own_divergence = divergence_of(model)
        self.probabilities = [
            isinstance(each.kind, Classes) and _sum_to_one(scores, each.kind.axis)
            for each, scores in zip(self.outputs, outputs, strict=True)
        ]
        given = match_labels(model, labels)
        # Whether labels are rows with one number for each class.
        self.one_hot = np.shape(given[0]) == np.shape(outputs[0])
        self.scales = [float(np.var(scores)) or 1.0 for scores in outputs]
        self.labels = [
            None if own is None else self._as_targets(index, own, outputs[index])
            for index, own in enumerate(given)
        ]
        missing = [
            each.name
            for each, own in zip(self.outputs, self.labels, strict=True)
            if own is None
        ]
        if labels is not None and missing:
            raise TaskError(
                "Every output needs labels where one has. "
                f"Received: none of {', '.join(missing)}. Give them, or leave all out: "
                "outputs are then compared with the float model's."
            )

    @property
    def labelled(self) -> bool:
        """Whether every output has labels."""
        return all(own is not None for own in self.labels)

    @property
    def targets(self) -> list[np.ndarray]:
        """Labels of each output, in its shape [images, ...]; [] without labels."""
        return [own for own in self.labels if own is not None]

    @property
    def decides(self) -> bool:
        """Whether an output is a decision, such as a class, that is right or wrong."""
        return any(each.kind.decides for each in self.outputs)

    def right(self, outputs: Sequence[np.ndarray], labels: Sequence[Any]) -> np.ndarray:
        """Share of the decisions on each image that are right, [B].

        Args:
            outputs: an array [B, ...] for each output.
            labels: the labels of these images.
        """
        found = [
            each.kind.right(scores, own).reshape(len(scores), -1).mean(axis=1)
            for each, scores, own in zip(self.outputs, outputs, labels, strict=True)
            if isinstance(each.kind, (Classes, Binary))
        ]
        return np.mean(found, axis=0)

    def task(self, outputs: Sequence[Any], labels: Sequence[Any]) -> tf.Tensor:
        """Cross-entropy in nats (for numbers the squared error) of each image, [B].

        Averaged over positions such as pixels, summed over outputs.

        Args:
            outputs: a tensor [B, ...] for each output.
            labels: the labels of these images.
        """
        terms = []
        for index, (scores, own) in enumerate(zip(outputs, labels, strict=True)):
            kind, scores = self.outputs[index].kind, tf.cast(scores, tf.float32)
            if isinstance(kind, Classes):
                target = tf.cast(own, tf.float32)
                gap = -tf.reduce_sum(target * self._log(index, scores), axis=kind.axis)
            elif isinstance(kind, Binary):
                yes, no = self._log_odds(index, scores)
                target = tf.cast(own, tf.float32)
                gap = -(target * yes + (1 - target) * no)
            else:
                gap = tf.square(scores - tf.cast(own, tf.float32)) / self.scales[index]
            terms.append(_per_image(gap))
        return tf.add_n(terms)

    def keras_loss(self) -> Any:
        """The task risk as a Keras loss, for a model with one output."""
        kind, axis = self.outputs[0].kind, getattr(self.outputs[0].kind, "axis", -1)
        if isinstance(kind, Binary):
            return keras.losses.BinaryCrossentropy(from_logits=not kind.threshold)
        if not isinstance(kind, Classes):
            return keras.losses.MeanSquaredError()
        options = {"from_logits": not self.probabilities[0], "axis": axis}
        if self.one_hot:
            return keras.losses.CategoricalCrossentropy(**options)
        options.pop("axis")
        return keras.losses.SparseCategoricalCrossentropy(**options)

    def divergence(self, outputs: Sequence[Any], teacher: Sequence[Any]) -> tf.Tensor:
        """`KL(teacher || student)` of each image, [B], in nats.

        Averaged over positions such as pixels, summed over outputs. For numbers it is
        the squared difference over the variance of the float outputs.

        Args:
            outputs: a tensor [B, ...] for each output of the student.
            teacher: the same for the float model.
        """
        if self._own_divergence is not None:
            return self._own_divergence(outputs, teacher)
        terms = []
        for index, (scores, known) in enumerate(zip(outputs, teacher, strict=True)):
            kind = self.outputs[index].kind
            scores, known = tf.cast(scores, tf.float32), tf.cast(known, tf.float32)
            if isinstance(kind, Classes):
                target = self._log(index, known)
                own = self._log(index, scores)
                gap = tf.reduce_sum(tf.exp(target) * (target - own), axis=kind.axis)
            elif isinstance(kind, Binary):
                pairs = zip(
                    self._log_odds(index, known),
                    self._log_odds(index, scores),
                    strict=True,
                )
                gap = tf.add_n([tf.exp(t) * (t - s) for t, s in pairs])
            else:
                gap = tf.square(scores - known) / self.scales[index]
            terms.append(_per_image(gap))
        return tf.add_n(terms)

    def drawn(
        self, outputs: Sequence[Any], teacher: Sequence[Any], seed: tf.Tensor
    ) -> tf.Tensor:
        """Negative log-likelihood of labels drawn from the float model's outputs, [B].

        If student and teacher are the same, the mean over draws of the outer product of
        its gradient with itself is the Hessian of `divergence` (Fisher information).

        Args:
            outputs: a tensor [B, ...] for each output.
            teacher: the same for the float model.
            seed: seed of the draw, two integers [2].
        """
        terms = []
        for index, (scores, known) in enumerate(zip(outputs, teacher, strict=True)):
            kind, own = self.outputs[index].kind, seed + tf.constant([0, index])
            scores, known = tf.cast(scores, tf.float32), tf.cast(known, tf.float32)
            if isinstance(kind, Classes):
                last = _axis_last(self._log(index, known), kind.axis)
                rows = tf.reshape(last, [-1, last.shape[-1]])
                picks = tf.random.stateless_categorical(rows, 1, own)[:, 0]
                log = _axis_last(self._log(index, scores), kind.axis)
                answer = tf.one_hot(picks, last.shape[-1])
                gap = -tf.reduce_sum(log * tf.reshape(answer, tf.shape(log)), axis=-1)
            elif isinstance(kind, Binary):
                yes, no = self._log_odds(index, scores)
                chance = tf.exp(self._log_odds(index, known)[0])
                uniform = tf.random.stateless_uniform(tf.shape(known), own)
                gap = -tf.where(uniform < chance, yes, no)
            else:
                spread = (self.scales[index] / 2) ** 0.5
                noise = spread * tf.random.stateless_normal(tf.shape(known), own)
                gap = tf.square(scores - known - noise) / self.scales[index]
            each = tf.reshape(gap, [tf.shape(gap)[0], -1])
            # The mean over positions; their draws are independent.
            places = tf.cast(tf.shape(each)[1], tf.float32)
            terms.append(tf.reduce_sum(each, axis=1) / tf.sqrt(places))
        return tf.add_n(terms)

    def _log(self, index: int, scores: tf.Tensor) -> tf.Tensor:
        """Log-probabilities of classes, of the shape of the scores."""
        if self.probabilities[index]:
            return tf.math.log(tf.maximum(scores, _LEAST))
        kind = self.outputs[index].kind
        assert isinstance(kind, Classes)
        return tf.nn.log_softmax(scores, axis=kind.axis)

    def _log_odds(self, index: int, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Log-probabilities of yes and of no, of the shape of the scores each."""
        kind = self.outputs[index].kind
        assert isinstance(kind, Binary)
        if kind.threshold:
            clipped = tf.clip_by_value(scores, _LEAST, 1 - _LEAST)
            return tf.math.log(clipped), tf.math.log(1 - clipped)
        return tf.math.log_sigmoid(scores), tf.math.log_sigmoid(-scores)

    def _as_targets(self, index: int, labels: Any, scores: np.ndarray) -> np.ndarray:
        """Labels in the shape of the scores: one-hot, 0 or 1, or numbers.

        Raises:
            TaskError: labels have another shape, or are not classes of the model.
        """
        kind, labels = self.outputs[index].kind, np.asarray(labels)
        if isinstance(kind, Classes):
            kind.right(scores, labels)  # refuses what does not fit
            if labels.shape != scores.shape:
                shape = kind.decide(scores).shape
                classes = scores.shape[kind.axis]
                rows = np.eye(classes, dtype="float32")[
                    labels.reshape(shape).astype(int)
                ]
                labels = np.moveaxis(rows, -1, kind.axis)
            return labels.astype("float32")
        if isinstance(kind, Binary):
            kind.right(scores, labels)
            return (labels.reshape(scores.shape) > 0.5).astype("float32")
        return kind.matched(scores, labels).astype("float32")


def _axis_last(values: tf.Tensor, axis: int) -> tf.Tensor:
    """A tensor with one of its axes moved to the end."""
    return keras.ops.moveaxis(values, axis, -1)


def _per_image(values: tf.Tensor) -> tf.Tensor:
    """Mean over all axes but the first."""
    return tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)


def _sum_to_one(scores: np.ndarray, axis: int) -> bool:
    """Whether scores along an axis are probabilities: non-negative, with the sum 1."""
    scores = np.asarray(scores, "float64")
    return bool(scores.min() >= 0 and np.allclose(scores.sum(axis=axis), 1, atol=1e-3))
