"""Average precision as COCO computes it: the mean over ten IoU thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmpq_tf.detection.mean_ap import IGNORED, RIGHT, WRONG, MeanAP

LEAST_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0, 1, 101)
MOST_DETECTIONS = 100  # of a class in an image
_SLACK = 1e-10  # tolerance of IoU thresholds in pycocotools


class CocoAP(MeanAP):
    """Accumulates images and computes COCO's AP: the mean over IoU of 0.5 to 0.95.

    In each image the best 100 detections of a class, in order of falling score, each
    take the free object of that class with the largest IoU. Precision is interpolated
    at 101 recalls.

    Unlike in pycocotools, detections of equal score are counted together, so that the
    order of images does not matter; and difficult objects are treated as crowds, but
    with the plain IoU.

    Args:
        class_names: one name per class, in the order of their numbers.

    Source: Lin et al., "Microsoft COCO", ECCV 2014, and pycocotools' `COCOeval`.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)

    def _marked(self, overlap: np.ndarray, difficult: np.ndarray) -> np.ndarray:
        return coco_marks(overlap, difficult)

    def mean(self) -> float | None:
        """Returns AP over all images added, 0 to 1; None without any object."""
        found = [
            coco_class_ap(int(count), np.concatenate(scores), np.concatenate(marked))
            for count, scores, marked in zip(
                self._objects, self._scores, self._marks, strict=True
            )
            if count
        ]
        return float(np.mean(found)) if found else None


def coco_marks(overlap: np.ndarray, difficult: np.ndarray) -> np.ndarray:
    """Marks each detection of a class in an image, at each of ten IoU thresholds.

    Args:
        overlap: IoU of the detections, best first, and the objects, [n, m].
        difficult: whether each object is difficult, bool [m].

    Returns:
        int64 [n, 10]: `RIGHT`, `WRONG` or `IGNORED`.
    """
    count, objects = overlap.shape
    least = np.array(LEAST_IOUS) - _SLACK
    result: np.ndarray = np.full((count, len(least)), WRONG, np.int64)
    result[MOST_DETECTIONS:] = IGNORED
    if not objects:
        return result
    free: np.ndarray = np.ones((len(least), objects), bool)
    levels = np.arange(len(least))
    near = np.flatnonzero(overlap.max(axis=1) >= least[0])
    for number in near[near < MOST_DETECTIONS]:
        row = overlap[number]
        usable = free & (row >= least[:, None])
        plain = np.where(usable & ~difficult, row, -1.0)
        # A difficult object is taken only if no other is left, but then repeatedly.
        hard = (usable & difficult).any(axis=1)
        best, hit = plain.argmax(axis=1), plain.max(axis=1) >= 0
        result[number, hard] = IGNORED
        result[number, hit] = RIGHT
        free[levels[hit], best[hit]] = False
    return result


def coco_class_ap(objects: int, scores: np.ndarray, marked: np.ndarray) -> float:
    """Returns the AP of one class, the mean over IoU thresholds.

    Args:
        objects: number of objects that are not difficult, 1 or more.
        scores: scores of the detections in all images, [n].
        marked: whether each is right, [n, 10]: see `coco_marks`.
    """
    order = np.argsort(-scores, kind="stable")
    scores, marked = scores[order], marked[order]
    ends: np.ndarray = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    return float(np.mean([_ap(objects, ends, column) for column in marked.T]))


def _ap(objects: int, ends: np.ndarray, marked: np.ndarray) -> float:
    """Returns the mean over 101 recalls of the largest precision at or beyond each."""
    hits, seen = np.cumsum(marked == RIGHT)[ends], np.cumsum(marked != IGNORED)[ends]
    kept = seen > 0
    hits, seen = hits[kept], seen[kept]
    precision: np.ndarray = hits / seen
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places: Any = np.searchsorted(hits / objects, RECALLS, side="left")
    reached = places[places < len(envelope)]
    return float(np.sum(envelope[reached]) / len(RECALLS)) if len(reached) else 0.0
