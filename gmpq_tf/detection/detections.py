"""Turns the outputs of a detector into the objects it has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.detection.boxes import decode
from gmpq_tf.detection.default_boxes import BoxError, DefaultBoxes


@dataclass(frozen=True)
class Detections:
    """The objects found in a batch of images, best first, padded with zeros.

    Args:
        boxes: float32 [B, K, 4] as (ymin, xmin, ymax, xmax), inside the image.
        classes: int32 [B, K], from 0 without background.
        scores: float32 [B, K], 0 to 1.
        counts: int32 [B], number of objects in each image.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    counts: np.ndarray

    def of_image(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns boxes [n, 4], classes [n] and scores [n] found in one image."""
        count = int(self.counts[index])
        columns = (self.boxes, self.classes, self.scores)
        boxes, classes, scores = (column[index, :count] for column in columns)
        return boxes, classes, scores


def decode_and_suppress(
    offsets: Any,
    scores: Any,
    default_boxes: DefaultBoxes,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    max_detections: int = 200,
    from_logits: bool = True,
) -> Detections:
    """Decodes a detector's outputs, and suppresses overlapping boxes class by class.

    For each class, boxes with a score above the threshold are taken in order of falling
    score, except those whose IoU with a box already taken exceeds `iou_threshold`; then
    the best of all classes are kept.

    Args:
        offsets: [B, N, 4] as (dy, dx, dh, dw).
        scores: [B, N, classes + 1], background first.
        default_boxes: default boxes of the detector.
        score_threshold: boxes with a higher score are candidates, 0 to 1.
        iou_threshold: largest IoU with a better box of the class, 0 to 1.
        max_detections: K, largest number of objects of a class, and of all classes.
        from_logits: whether scores are logits; else probabilities.

    Returns:
        The objects that are kept.

    Raises:
        BoxError: the outputs are not those of these default boxes.

    Source: Liu et al., section 2.2 and 3.1. Unlike there all candidates of a class are
    compared, not the best 400.
    """
    offsets, scores = np.asarray(offsets, "float32"), np.asarray(scores, "float32")
    wanted = (default_boxes.count, 4)
    if offsets.shape[1:] != wanted or scores.shape[:2] != offsets.shape[:2]:
        raise BoxError(
            f"Outputs must be offsets [batch, {wanted[0]}, 4] and scores [batch, "
            f"{wanted[0]}, classes + 1]. Received: {offsets.shape} and "
            f"{scores.shape}. Pass the default boxes of the model."
        )
    first, second = default_boxes.variances
    boxes = decode(offsets, default_boxes.centers(), (first, second))
    shares = np.asarray(tf.nn.softmax(scores)) if from_logits else scores
    return _best(boxes, shares[..., 1:], score_threshold, iou_threshold, max_detections)


def suppress(
    boxes: Any,
    scores: Any,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    max_detections: int = 200,
) -> Detections:
    """Suppresses overlapping boxes class by class, as the last step of a detector.

    Args:
        boxes: [B, N, 4] as (ymin, xmin, ymax, xmax), relative to the image.
        scores: [B, N, classes], 0 to 1, without background.
        score_threshold: boxes with a higher score are candidates, 0 to 1.
        iou_threshold: as for `decode_and_suppress`.
        max_detections: K, largest number of objects of a class, and of all classes.

    Returns:
        The objects that are kept.

    Raises:
        BoxError: the arrays do not fit each other, or are not finite.
    """
    boxes, scores = np.asarray(boxes, "float32"), np.asarray(scores, "float32")
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or scores.shape[:2] != boxes.shape[:2]:
        raise BoxError(
            "Boxes must be [batch, N, 4] and scores [batch, N, classes]. Received: "
            f"{boxes.shape} and {scores.shape}. Reshape the maps of each level to "
            "[batch, rows * columns * anchors, ...] and concatenate them along axis 1."
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise BoxError(
            "Boxes and scores must be finite. Received: NaN or infinity. Look at the "
            "outputs of the detector, and at the exponential in its decoding."
        )
    return _best(boxes, scores, score_threshold, iou_threshold, max_detections)


def _best(
    boxes: Any,
    scores: Any,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> Detections:
    found = tf.image.combined_non_max_suppression(
        tf.constant(boxes)[:, :, None],
        scores,
        max_output_size_per_class=max_detections,
        max_total_size=max_detections,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=True,
    )
    kept, values, classes, counts = (np.asarray(part) for part in found)
    return Detections(kept, classes.astype(np.int32), values, counts)
