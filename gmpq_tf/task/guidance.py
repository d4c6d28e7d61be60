"""Distillation losses: the distance of a student's outputs from its teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.task.kinds import Binary, Numbers, OutputKind

# Least probability of all classes together at which the teacher sees an object.
FOREGROUND = 0.1


def guidance(
    kinds: Sequence[OutputKind],
    targets: Sequence[Any],
    scores: Sequence[Any],
    temperature: float,
) -> tf.Tensor:
    """Returns the distillation loss, summed over all outputs.

    Args:
        kinds: kind of each output.
        targets: outputs of the teacher before any softmax or sigmoid, [B, ...] each.
        scores: outputs of the student before any softmax or sigmoid, [B, ...] each.
        temperature: `T > 0`.

    Returns:
        Scalar. For classes `T^2 KL(softmax(t / T) || softmax(s / T))`; for yes-or-no
        outputs the same over the two classes of each; for numbers the mean of
        `(t - s)^2`.
    """
    terms = []
    for kind, target, score in zip(kinds, targets, scores, strict=True):
        if isinstance(kind, Numbers):
            error = tf.cast(target, tf.float32) - tf.cast(score, tf.float32)
            terms.append(tf.reduce_mean(tf.square(error)))
            continue
        pair = target / temperature, score / temperature
        if isinstance(kind, Binary):
            gap = binary_gap(*pair)
        else:
            gap = soft_cross_entropy(
                *(keras.ops.moveaxis(z, kind.axis, -1) for z in pair)
            )
        terms.append(temperature**2 * gap)
    return tf.add_n(terms)


def soft_cross_entropy(target_logits: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the mean over rows of `KL(softmax(target_logits) || softmax(logits))`.

    Args:
        target_logits: logits of the teacher, [..., C].
        logits: logits of the student, [..., C].

    Returns:
        Scalar, float32, in nats.
    """
    return tf.reduce_mean(divergence(target_logits, logits))


def divergence(target_logits: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns `KL(softmax(target_logits) || softmax(logits))` of each row, in nats.

    Args:
        target_logits: [..., C].
        logits: [..., C].

    Returns:
        float32 [...].
    """
    log_targets = tf.nn.log_softmax(tf.cast(target_logits, tf.float32))
    gap = log_targets - tf.nn.log_softmax(tf.cast(logits, tf.float32))
    return tf.reduce_sum(tf.exp(log_targets) * gap, axis=-1)


def binary_gap(target_logits: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns `KL(sigmoid(target) || sigmoid(logit))`, summed over the last axis.

    All other axes are averaged.

    Args:
        target_logits: logits of the teacher, [..., units].
        logits: logits of the student, [..., units].

    Returns:
        Scalar, float32, in nats.
    """
    pairs = [tf.stack([tf.zeros_like(z), z], axis=-1) for z in (target_logits, logits)]
    units = float(target_logits.shape[-1] or 1)
    return units * soft_cross_entropy(*pairs)


def box_gap(
    targets: Sequence[Any], outputs: Sequence[Any], temperature: float
) -> tf.Tensor:
    """Returns the distillation loss of a detector where its teacher sees objects.

    `mean_i (T^2 KL(softmax(t_i / T) || softmax(s_i / T)) + smooth L1(o_i, p_i))` over
    the default boxes i to whose background the teacher gives a probability below 0.9.

    Args:
        targets: outputs of the teacher: (offsets [B, N, 4], logits [B, N, classes +
            1]).
        outputs: outputs of the student, in the same form.
        temperature: `T > 0`.

    Returns:
        Scalar, float32; 0 where the teacher sees nothing.
    """
    offsets, logits = (tf.cast(z, tf.float32) for z in targets)
    own_offsets, own_logits = (tf.cast(z, tf.float32) for z in outputs)
    seen = tf.cast(1 - tf.nn.softmax(logits)[..., 0] > FOREGROUND, tf.float32)
    classes = divergence(logits / temperature, own_logits / temperature)
    size = tf.abs(offsets - own_offsets)
    smooth = tf.reduce_sum(tf.where(size < 1, size * size / 2, size - 0.5), axis=-1)
    total = tf.reduce_sum(seen * (temperature**2 * classes + smooth))
    return total / tf.maximum(tf.reduce_sum(seen), 1.0)
