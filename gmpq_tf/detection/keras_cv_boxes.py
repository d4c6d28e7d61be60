"""Boxes as keras-cv has them, for its metric; keras-cv itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gmpq_tf.detection.detections import Detections

FORMAT = "yxyx"  # what keras-cv calls (ymin, xmin, ymax, xmax) in pixels


def keras_cv_truth(
    labels: Mapping[str, Any], size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Converts labels to `y_true` of `keras_cv.metrics.BoxCOCOMetrics("yxyx", ...)`.

    The metric has no difficult objects: they count like all others.

    Args:
        labels: labels of a data set: "boxes" [B, M, 4] in 0 to 1 and "classes" [B, M],
            -1: padding.
        size: height and width of the images, in pixels; the metric tells small objects
            from large ones by their pixels.

    Returns:
        "boxes" float32 [B, M, 4] in pixels, "classes" int32 [B, M].
    """
    classes = np.asarray(labels["classes"], np.int32)
    boxes = _pixels(np.asarray(labels["boxes"]), size)
    return {"boxes": np.where(classes[..., None] < 0, -1, boxes), "classes": classes}


def keras_cv_found(found: Detections, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Converts detections to `y_pred` of the same metric.

    Args:
        found: detections in a batch of images.
        size: height and width of the images, in pixels.

    Returns:
        "boxes" float32 [B, K, 4] in pixels, "classes" int32 [B, K] with -1 for padding,
        "confidence" float32 [B, K] with 0 for padding.
    """
    real = np.arange(found.scores.shape[1]) < np.asarray(found.counts)[:, None]
    boxes = _pixels(found.boxes, size)
    return {
        "boxes": np.where(real[..., None], boxes, np.float32(-1)),
        "classes": np.where(real, found.classes, -1).astype(np.int32),
        "confidence": np.where(real, found.scores, 0).astype(np.float32),
    }


def _pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    sides = np.array([height, width, height, width], np.float32)
    return (boxes * sides).astype(np.float32)
