"""What a two-stage detector computes between its two files, in NumPy alone."""

from __future__ import annotations

import numpy as np

from gmpq_tf.detection.boxes import decode, iou
from gmpq_tf.detection.regions import MOST_GROWTH, NO_VARIANCES


def suppress(
    boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, most: int
) -> np.ndarray:
    """Non-maximum suppression: drops boxes that overlap a better one.

    Args:
        boxes: [N, 4] as (ymin, xmin, ymax, xmax).
        scores: [N]; of equal ones the first is better.
        iou_threshold: boxes whose IoU with a better kept one is larger are dropped, 0
            to 1.
        most: largest number of boxes that are kept.

    Returns:
        Indices of the kept boxes, best first: int [up to `most`].
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        overlap = iou(boxes[best : best + 1], boxes[order])[0]
        order = order[overlap <= iou_threshold]
    return np.array(kept, int)


def propose_arrays(
    scores: np.ndarray,
    offsets: np.ndarray,
    anchors: np.ndarray,
    before: int,
    after: int,
    iou_threshold: float,
) -> np.ndarray:
    """`regions.propose` for one image.

    Args:
        scores: objectness of each anchor, [N]; only the order matters.
        offsets: [N, 4] as (dy, dx, dh, dw), without variances.
        anchors: [N, 4] as (cy, cx, h, w).
        before: number of candidates.
        after: R, largest number of regions.
        iou_threshold: as for `suppress`.

    Returns:
        float32 [R, 4] as (ymin, xmin, ymax, xmax), padded with zeros.
    """
    first = np.argsort(-scores, kind="stable")[:before]
    moved = offsets[first].astype(np.float32)
    moved[:, 2:] = np.minimum(moved[:, 2:], np.float32(MOST_GROWTH))
    boxes = np.clip(decode(moved, anchors[first], NO_VARIANCES), 0, 1)
    boxes = boxes.astype(np.float32)
    real = boxes.any(axis=1)  # TensorFlow drops boxes of zeros
    boxes, ranked = boxes[real], scores[first][real]
    kept = suppress(boxes, ranked, iou_threshold, after)
    found: np.ndarray = np.zeros((after, 4), np.float32)
    found[: len(kept)] = boxes[kept]
    return found


def align_array(
    features: np.ndarray, corners: np.ndarray, size: int, samples: int
) -> np.ndarray:
    """`regions.roi_align` for one image.

    Args:
        features: [H, W, C].
        corners: [R, 4] as (ymin, xmin, ymax, xmax), 0 to 1.
        size: bins along a side of a region.
        samples: samples along a side of a bin.

    Returns:
        float32 [R, size, size, C].
    """
    points = size * samples
    rows = _taps(corners[:, 0], corners[:, 2], features.shape[0], points)
    columns = _taps(corners[:, 1], corners[:, 3], features.shape[1], points)
    features = features.astype(np.float32)
    found = np.empty((len(corners), points, points, features.shape[2]), np.float32)
    for region in range(len(corners)):
        low, high, part, inside = (each[region] for each in rows)
        wide = features[low] + (features[high] - features[low]) * part[:, None, None]
        wide[~inside] = 0
        low, high, part, inside = (each[region] for each in columns)
        whole = wide[:, low] + (wide[:, high] - wide[:, low]) * part[:, None]
        whole[:, ~inside] = 0
        found[region] = whole
    shape = (len(corners), size, samples, size, samples, -1)
    return found.reshape(shape).mean(axis=(2, 4), dtype=np.float32)


def _taps(
    low: np.ndarray, high: np.ndarray, side: int, points: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where samples along one axis lie, arrays [R, points].

    Returns:
        Indices of the pixels before and after each sample, the fraction of the way from
        the first to the second, and whether the sample lies in the map.
    """
    one, many = np.float32(side), np.float32(max(side - 1, 1))
    step = (high * one - low * one) / np.float32(points)
    first = (low * one - np.float32(0.5) + step / 2) / many
    last = (high * one - np.float32(0.5) - step / 2) / many
    numbers: np.ndarray = np.arange(points, dtype=np.float32)
    # The same formula as in `tf.image.crop_and_resize`.
    scale = (last - first) * np.float32(side - 1) / np.float32(points - 1)
    places = first[:, None] * np.float32(side - 1) + numbers * scale[:, None]
    inside = (places >= 0) & (places <= side - 1)
    places = np.clip(places, 0, side - 1)
    below = np.floor(places).astype(int)
    above = np.ceil(places).astype(int)
    return below, above, (places - below).astype(np.float32), inside
