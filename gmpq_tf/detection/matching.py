"""Training targets of a detector: a class and offsets for each default box."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from gmpq_tf.detection.boxes import encode, iou
from gmpq_tf.detection.default_boxes import DefaultBoxes

LEAST_IOU = 0.5


def match(overlap: tf.Tensor, known: tf.Tensor, least_iou: float) -> tf.Tensor:
    """Assigns an object to each default box (Liu et al., section 2.2).

    Each object is assigned to the box with the largest IoU; if two objects have the
    same box, the later one keeps it. Each other box gets the object with the largest
    IoU, if that is at least `least_iou`. Objects that overlap no box are left out.

    Args:
        overlap: IoU of objects and boxes, [M, N], M at least 1.
        known: bool [M]; False: padding.
        least_iou: 0 to 1.

    Returns:
        int32 [N]: index of the object; -1: background.
    """
    overlap = tf.where(known[:, None], overlap, -1.0)
    numbers = tf.range(tf.shape(overlap)[0])
    best, most = tf.argmax(overlap, 0, tf.int32), tf.reduce_max(overlap, 0)
    chosen = tf.where(most >= least_iou, best, -1)
    takes = tf.one_hot(tf.argmax(overlap, 1), tf.shape(overlap)[1], True, False)
    takes &= (overlap > 0) & known[:, None]
    taken = tf.reduce_max(tf.where(takes, numbers[:, None], -1), 0)
    return tf.where(taken >= 0, taken, chosen)


def targets(
    labels: Mapping[str, tf.Tensor],
    default_boxes: DefaultBoxes,
    least_iou: float = LEAST_IOU,
) -> dict[str, tf.Tensor]:
    """Returns the training targets of a detector for a batch of images.

    Args:
        labels: "boxes" [B, M, 4] as (ymin, xmin, ymax, xmax), and "classes" int [B, M]
            from 0, -1: padding. Difficult objects are treated as all others.
        default_boxes: default boxes of the detector.
        least_iou: IoU from which on a box is assigned an object, 0 to 1.

    Returns:
        "boxes" float32 [B, N, 5]: four offsets, and 1 where an object is assigned, else
        0; "scores" int32 [B, N]: class + 1, 0: background.
    """
    corners, centers = default_boxes.corners(), default_boxes.centers()
    first, second = default_boxes.variances

    def of_image(image: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        # One row of padding more, because `match` needs at least one object.
        boxes = tf.pad(tf.cast(image[0], tf.float32), [[0, 1], [0, 0]])
        classes = tf.pad(tf.cast(image[1], tf.int32), [[0, 1]], constant_values=-1)
        overlap = iou(boxes, tf.constant(corners))
        chosen = match(overlap, classes >= 0, least_iou)
        found = chosen >= 0
        number = tf.maximum(chosen, 0)
        own = tf.where(found[:, None], tf.gather(boxes, number), corners)
        offsets = encode(own, tf.constant(centers), (first, second))
        offsets = tf.where(found[:, None], offsets, 0.0)
        marked = tf.concat([offsets, tf.cast(found[:, None], tf.float32)], -1)
        return marked, tf.where(found, tf.gather(classes, number) + 1, 0)

    boxes, scores = tf.map_fn(
        of_image,
        (labels["boxes"], labels["classes"]),
        fn_output_signature=(
            tf.TensorSpec([default_boxes.count, 5], tf.float32),
            tf.TensorSpec([default_boxes.count], tf.int32),
        ),
    )
    return {"boxes": boxes, "scores": scores}
