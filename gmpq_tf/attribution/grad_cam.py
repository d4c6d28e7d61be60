"""Grad-CAM, with the inner gradient taken over the head of the network only."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def channel_importance(gradient: tf.Tensor) -> tf.Tensor:
    """`alpha_c[t] = (1/Z) sum_{m,n} df(x)[t] / dA_c[m,n]` (eq. 3), with `Z = H W`.

    Args:
        gradient: of the class score with respect to the feature map, [B, H, W, C].

    Returns:
        [B, C].
    """
    return tf.reduce_mean(gradient, axis=(1, 2))


def attribution_map(feature: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """`M[t] = ReLU(sum_c alpha_c[t] A_c)` (eq. 4).

    Args:
        feature: feature map A, [B, H, W, C].
        gradient: of the class score with respect to it, same shape.

    Returns:
        Non-negative maps, [B, H, W], in float32 at least: float16 loses the gradients
        of large feature maps and the sums of bright ones. NaN stays NaN.
    """
    feature, gradient = wide(feature), wide(gradient)
    alpha = channel_importance(gradient)
    return tf.nn.relu(tf.einsum("bhwc,bc->bhw", feature, alpha))


def wide(value: Any) -> tf.Tensor:
    """A tensor in float32 where its type is narrower."""
    value = tf.convert_to_tensor(value)
    return tf.cast(value, tf.float32) if value.dtype.size < 4 else value


def class_scores(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Score of each image's class: `logits[b, classes[b]]`, [B]."""
    mask = tf.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    return tf.reduce_sum(logits * mask, axis=-1)


def grad_cam(
    head: keras.Model, feature: tf.Tensor, classes: tf.Tensor | None, training: bool
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Attribution maps, and the head's outputs, from one pass over the head.

    The score depends on the feature map through the head alone, so the gradient of
    eq. 3 needs no other layer. Unlike the official code, which back-propagates the
    whole network for it, this costs next to nothing; the maps are the same.
    Differentiable once more when called under an outer `tf.GradientTape`.

    Args:
        head: feature map -> [logits, model output], as `split_head` returns it.
        feature: [B, H, W, C].
        classes: class of each image, integers [B]; None: the predicted class.
        training: mode the head runs in.

    Returns:
        (maps [B, H, W], [logits, output]).
    """
    with tf.GradientTape() as tape:
        tape.watch(feature)
        logits, output = head(feature, training=training)
        if classes is None:
            classes = tf.argmax(logits, axis=-1)
        scores = class_scores(logits, classes)
    gradient = tape.gradient(scores, feature)
    return attribution_map(feature, gradient), [logits, output]


def labels_to_classes(labels: Any, num_classes: int) -> tf.Tensor:
    """Class numbers [B] from sparse labels ([B] or [B, 1]) or one-hot ones.

    Of soft labels it is the first of the largest. A class that does not exist has no
    score: its maps are all zero.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank and labels.shape.rank > 1 and labels.shape[-1] == num_classes:
        return tf.argmax(labels, axis=-1)
    return tf.cast(tf.reshape(labels, [-1]), tf.int64)
