"""Decodes the output of a two-stage detector to the objects that it finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmpq_tf.detection.boxes import decode, to_centers
from gmpq_tf.detection.detections import Detections
from gmpq_tf.detection.region_arrays import suppress
from gmpq_tf.detection.region_layers import HEAD_VARIANCES, split_rows


def found_in_regions(
    rows: Any,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
) -> Detections:
    """Decodes the second stage's boxes, and suppresses overlaps class by class.

    For each class, boxes with a score above the threshold are taken in order of falling
    score, except those whose IoU with a box already taken exceeds `iou_threshold`; then
    the best of all classes are kept.

    Args:
        rows: [B, R, 4 + 5 (classes + 1)], see `RegionOutputs`.
        score_threshold: 0 to 1.
        iou_threshold: 0 to 1.
        max_detections: K, largest number of objects of a class, and of all classes.

    Returns:
        The objects found.
    """
    boxes, shares = class_boxes(np.asarray(rows, "float32"))
    boxes = np.clip(boxes, 0, 1)
    found: np.ndarray = np.zeros((len(boxes), max_detections, 6), np.float32)
    counts: np.ndarray = np.zeros(len(boxes), np.int32)
    for index, (own, scores) in enumerate(zip(boxes, shares, strict=True)):
        best: list[tuple[int, int]] = []
        for number in range(scores.shape[1]):
            able = np.flatnonzero(scores[:, number] > score_threshold)
            pair = own[able, number], scores[able, number]
            kept = able[suppress(*pair, iou_threshold, max_detections)]
            best += [(region, number) for region in kept]
        best.sort(key=lambda place: -scores[place])
        counts[index] = len(best[:max_detections])
        for row, place in enumerate(best[:max_detections]):
            found[index, row] = [*own[place], place[1], scores[place]]
    return Detections(
        found[..., :4], found[..., 4].astype(np.int32), found[..., 5], counts
    )


def class_boxes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and probabilities of each class, without background.

    Args:
        rows: as in `found_in_regions`.

    Returns:
        (float32 [B, R, classes, 4] as (ymin, xmin, ymax, xmax), not clipped; float32
        [B, R, classes], 0 where there is no region).
    """
    corners, logits, offsets = split_rows(rows)
    middles = to_centers(corners)[..., None, :]
    boxes = decode(offsets, middles, HEAD_VARIANCES)[..., 1:, :]
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares = (powers / powers.sum(axis=-1, keepdims=True))[..., 1:]
    real = (corners[..., 2:] > corners[..., :2]).all(axis=-1)
    return boxes.astype("float32"), np.where(real[..., None], shares, 0)
