"""Grad-CAM, with the inner gradient taken through the head of the network only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.detection.region_layers import region_search_of, split_rows
from gmpq_tf.detection.region_losses import region_targets


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
        feature: feature map A, [B, H, W, C]; or [B, T, C], treated as images of one
            row, so that `Z = T`.
        gradient: gradient of the class score with respect to it, of the same shape.

    Returns:
        Non-negative maps, [B, H, W] or [B, 1, T], in float32 at least: in float16 the
        gradients of large feature maps underflow and the sums of bright ones overflow.
        NaN stays NaN.
    """
    feature, gradient = as_images(wide(feature)), as_images(wide(gradient))
    alpha = channel_importance(gradient)
    return tf.nn.relu(tf.einsum("bhwc,bc->bhw", feature, alpha))


def wide(value: Any) -> tf.Tensor:
    """A tensor of any shape, cast to float32 where its type is narrower."""
    value = tf.convert_to_tensor(value)
    return tf.cast(value, tf.float32) if value.dtype.size < 4 else value


def as_images(feature: tf.Tensor) -> tf.Tensor:
    """Reshapes [B, T, C] to [B, 1, T, C]; images [B, H, W, C] stay unchanged."""
    return feature[:, None] if feature.shape.rank == 3 else feature


def class_scores(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """The score `f(x)[t]` that eq. 3 differentiates, for each image.

    `logits[b, classes[b]]`; for a single logit of two classes, `+logit` for class 1 and
    `-logit` for class 0. If an image has several labels, their scores are added. A
    class that does not exist has the score 0, and so a map of zeros.

    For a detector it is the mean over the default boxes i that have an object,
    `mean_i logits[b, i, classes[b, i]]`, and 0 if there is none.

    Args:
        logits: [B, C], or [B, 1] for two classes; of a detector [B, N, C + 1], the
            background first.
        classes: integers [B]; or, for several labels per image, [B, C] with 1 for each
            label and 0 elsewhere; of a detector [B, N], 0: background.

    Returns:
        Scores [B].
    """
    if logits.shape.rank == 3:
        found = tf.cast(classes > 0, logits.dtype)
        picked = tf.gather(logits, tf.maximum(classes, 0), batch_dims=2)
        count = tf.maximum(tf.reduce_sum(found, -1), 1)
        return tf.reduce_sum(found * picked, -1) / count
    if classes.shape.rank == 2:
        mask = tf.cast(classes, logits.dtype)
    elif logits.shape[-1] == 1:
        yes, no = tf.equal(classes, 1), tf.equal(classes, 0)
        mask = (tf.cast(yes, logits.dtype) - tf.cast(no, logits.dtype))[:, None]
    else:
        mask = tf.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    return tf.reduce_sum(logits * mask, axis=-1)


def region_scores(rows: tf.Tensor, objects: tf.Tensor | None) -> tf.Tensor:
    """`class_scores` for a detector of two stages: the mean over its regions, [B].

    Regions that overlap an object by half or more count, with the logit of that
    object's class. They are the regions that the network proposes itself, so those of
    student and teacher differ.

    Args:
        rows: what `RegionOutputs` returns, [B, R, 4 + 5 (classes + 1)].
        objects: [B, M, 5]: corners, and class from 1, 0: padding; None: each region
            counts with the class of its largest score.
    """
    corners, logits, _ = split_rows(rows)
    corners = tf.stop_gradient(wide(corners))
    if objects is None:
        real = tf.reduce_all(corners[..., 2:] > corners[..., :2], axis=-1)
        classes = tf.where(real, tf.argmax(logits, axis=-1), -1)
    else:
        classes, _ = region_targets(objects, corners)
    return class_scores(logits, classes)


def predicted_classes(logits: tf.Tensor) -> tf.Tensor:
    """The class of the largest score, [B]; for a single logit 1 where it is above 0.

    For a detector the class of each default box, [B, N].
    """
    if logits.shape[-1] == 1:
        return tf.cast(logits[:, 0] > 0, tf.int64)
    return tf.argmax(logits, axis=-1)


def grad_cam(
    head: keras.Model, feature: Any, classes: tf.Tensor | None, training: bool
) -> tuple[tf.Tensor, list[Any]]:
    """Attribution maps (eq. 3 and 4) and the head's outputs, in one pass of the head.

    The score depends on the feature map through the head alone, so the gradient of
    eq. 3 needs no other layer. Unlike the official code, which back-propagates the
    whole network for it, this costs next to nothing; the maps are the same.
    Under an outer `tf.GradientTape` the maps can be differentiated once more: that is
    how the risk R_G trains the student through this inner gradient.

    Args:
        head: feature map -> [logits, model output], as `split_head` returns it.
        feature: [B, H, W, C], or [B, T, C]; for a detector a list of that and of the
            other tensors that the head reads, which are treated as constant.
        classes: class of each image, integers [B], or labels [B, C], as
            `labels_to_classes` returns them; for a detector of each default box,
            [B, N]; for one of two stages its objects, [B, M, 5]; None: the predicted
            classes.
        training: mode the head runs in.

    Returns:
        (maps [B, H, W], or [B, 1, T]; [logits, output]).
    """
    first = feature[0] if isinstance(feature, (list, tuple)) else feature
    with tf.GradientTape() as tape:
        tape.watch(first)
        logits, output = head(feature, training=training)
        if region_search_of(head) is not None:
            scores = region_scores(logits, classes)
        else:
            if classes is None:
                classes = predicted_classes(logits)
            scores = class_scores(logits, tf.convert_to_tensor(classes))
    gradient = tape.gradient(scores, first)
    return attribution_map(first, gradient), [logits, output]


def labels_to_classes(
    labels: Any, num_classes: int, independent: bool = False
) -> tf.Tensor:
    """Classes of images from their labels, in any of the usual formats.

    Args:
        labels: class numbers, [B] or [B, 1], of any type; or one row per image, [B, C]:
            one-hot, soft (the first of the largest counts), or zeros and ones. For a
            single logit: 1 (yes), 0 or -1 (no), [B] or [B, 1]; smoothed labels count as
            yes above 0.5.
        num_classes: number of scores of the model; 1 for a single logit of two classes.
        independent: whether a row may hold any number of labels, as with sigmoids.

    Returns:
        Class numbers [B], with -1 for labels that are not whole numbers; or, for rows
        of independent labels, [B, C] with 1 where a label is above 0.5. Classes that do
        not exist, and rows without a label, have no score: their maps are all zero.

    Raises:
        ValueError: labels of a shape that fits none of these.
    """
    labels = tf.convert_to_tensor(labels)
    shape = labels.shape
    if shape.rank == 2 and shape[-1] == num_classes and num_classes > 1:
        if independent:
            return tf.cast(tf.cast(labels, tf.float32) > 0.5, tf.int64)
        return tf.argmax(labels, axis=-1)
    if shape.rank is not None and any(side not in (1, None) for side in shape[1:]):
        rows = f" or (batch, {num_classes})" if num_classes > 1 else ""
        raise ValueError(
            "Labels must be class numbers of shape (batch,) or (batch, 1)"
            f"{rows}, since the model has {num_classes} score(s). "
            f"Received: labels of shape {tuple(shape)}. Pass labels that fit, "
            "or search with eta=0 (no attribution)."
        )
    labels = tf.reshape(labels, [-1])
    if num_classes == 1:
        return _signs_to_classes(tf.cast(labels, tf.float32))
    whole = tf.cast(labels, tf.int64)
    if not labels.dtype.is_floating:
        return whole
    return tf.where(tf.equal(tf.cast(whole, labels.dtype), labels), whole, -1)


def _signs_to_classes(labels: tf.Tensor) -> tf.Tensor:
    """Classes 1 (yes) and 0 (no, which may be given as -1); -1 for other labels."""
    known = tf.abs(labels) <= 1
    return tf.where(known, tf.cast(labels > 0.5, tf.int64), -1)


def are_classes(classes: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Whether each image has a class that exists, or at least one label; bool [B].

    Args:
        classes: what `labels_to_classes` returned, [B] or [B, C]; or the objects of
            images, [B, M, 5], from `labels_to_objects`.
        num_classes: number of scores of the model; 1 for a single logit of two classes.
    """
    if classes.shape.rank == 3:
        return tf.reduce_any(classes[..., 4] > 0, axis=-1)
    if classes.shape.rank == 2:
        return tf.reduce_any(classes > 0, axis=-1)
    return (classes >= 0) & (classes < max(num_classes, 2))


def labels_to_boxes(labels: Any, count: int) -> tf.Tensor:
    """Classes of default boxes from the labels of a detector.

    Args:
        labels: "scores" [B, N] in a mapping, class + 1 and 0 for the background, as
            `gmpq_tf.detection.targets` makes them; or those alone.
        count: N of the model.

    Returns:
        Integers [B, N].

    Raises:
        ValueError: labels of another form.
    """
    scores = labels.get("scores") if isinstance(labels, Mapping) else labels
    shape = None if scores is None else tf.convert_to_tensor(scores).shape
    if shape is None or shape.rank != 2 or shape[-1] != count:
        known = sorted(labels) if isinstance(labels, Mapping) else type(labels).__name__
        raise ValueError(
            f"Attribution of a detector needs the class of each of its {count} default "
            f"boxes, [batch, {count}]. Received: labels {known} with scores of shape "
            f"{shape}. Encode the objects by `gmpq_tf.detection.targets`, or search "
            "with eta=0 (no attribution)."
        )
    return tf.cast(scores, tf.int64)


def labels_to_objects(labels: Any) -> tf.Tensor:
    """Objects of images from the labels of a detector of two stages.

    Args:
        labels: "objects" [B, M, 5] in a mapping, as
            `gmpq_tf.detection.region_losses.anchor_targets` makes them; or those alone.

    Returns:
        float32 [B, M, 5]: corners, and class from 1, 0: padding.

    Raises:
        ValueError: labels of another form.
    """
    objects = labels.get("objects") if isinstance(labels, Mapping) else labels
    shape = None if objects is None else tf.convert_to_tensor(objects).shape
    if shape is None or shape.rank != 3 or shape[-1] != 5:
        known = sorted(labels) if isinstance(labels, Mapping) else type(labels).__name__
        raise ValueError(
            "Attribution of a detector of two stages needs the objects of each image, "
            f"[batch, M, 5]. Received: labels {known} with objects of shape {shape}. "
            "Encode them by `task_of(model).encode`, or search with eta=0 (no "
            "attribution)."
        )
    return tf.cast(objects, tf.float32)
