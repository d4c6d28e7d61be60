"""Mean average precision of a detector, as PASCAL VOC computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gmpq_tf.detection.boxes import iou
from gmpq_tf.detection.default_boxes import BoxError

LEAST_IOU = 0.5
# Marks of a detection; IGNORED: it found a difficult object, which does not count.
RIGHT, WRONG, IGNORED = 1, 0, -1


class Found(Protocol):
    """Objects found in a batch of images, such as `Detections`."""

    def of_image(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns boxes [n, 4], classes [n] and scores [n] found in one image."""


@dataclasses.dataclass(frozen=True)
class ClassAP:
    """Average precision of one class.

    Args:
        objects: number of objects that count, which excludes difficult ones.
        detections: number of detections that count, which excludes those of difficult
            objects.
        recall: float64 [n], found objects over objects, for each threshold of the
            score; rising.
        precision: float64 [n], right detections over all, for the same thresholds.
        ap_07: mean over t = 0, 0.1, ..., 1 of the largest precision at recall of at
            least t (VOC 2007), 0 to 1; None without objects.
        ap_area: area below the precision made monotone (VOC 2010 and later), 0 to 1;
            None without objects.
    """

    objects: int
    detections: int
    recall: np.ndarray
    precision: np.ndarray
    ap_07: float | None
    ap_area: float | None


@dataclasses.dataclass(frozen=True)
class APReport:
    """Average precision of each class, and their means over classes with objects.

    Args:
        classes: class name -> its average precision.
        map_07: mean of `ap_07`, 0 to 1; None where no class has an object.
        map_area: mean of `ap_area`, 0 to 1; None where no class has an object.
        images: number of images.
    """

    classes: dict[str, ClassAP]
    map_07: float | None
    map_area: float | None
    images: int


class MeanAP:
    """Accumulates images and computes the average precision of detections.

    In each image the detections of a class, in order of falling score, each take the
    object of that class with the largest IoU. If the IoU is at least `least_iou`, the
    first detection to take an object is right; later ones and all others are wrong;
    those of a difficult object do not count.

    Unlike in the VOC devkit, box sides are differences of relative coordinates (the
    devkit adds one pixel), and detections of equal score are counted together, so that
    the order of images does not matter.

    Args:
        class_names: one name per class, in the order of their numbers.
        least_iou: above 0 and at most 1.

    Raises:
        BoxError: there is no class, or the IoU is out of range.
    """

    def __init__(
        self, class_names: Sequence[str], least_iou: float = LEAST_IOU
    ) -> None:
        self.class_names = tuple(map(str, class_names))
        if not self.class_names or len(set(self.class_names)) < len(self.class_names):
            raise BoxError(
                "Average precision needs one class or more, each of another name. "
                f"Received: class_names={class_names!r:.200}. Pass those of the data."
            )
        if not 0 < least_iou <= 1:
            raise BoxError(
                "least_iou must be above 0 and at most 1. "
                f"Received: least_iou={least_iou!r}. VOC takes 0.5."
            )
        self.least_iou = least_iou
        self.images = 0
        self._objects: np.ndarray = np.zeros(len(self.class_names), np.int64)
        self._scores: list[list[np.ndarray]] = [[] for _ in self.class_names]
        self._marks: list[list[np.ndarray]] = [[] for _ in self.class_names]

    def add(
        self, truth: Mapping[str, Any], boxes: Any, classes: Any, scores: Any
    ) -> None:
        """Adds an image.

        Args:
            truth: "boxes" [m, 4] as (ymin, xmin, ymax, xmax), "classes" int [m] from 0
                (-1: padding), and, where some are difficult, "difficult" bool [m].
            boxes: detected boxes, [n, 4] as (ymin, xmin, ymax, xmax).
            classes: their classes, int [n] from 0; -1: padding.
            scores: their scores, [n].

        Raises:
            BoxError: shapes do not agree, a class does not exist, or a number is not
                finite.
        """
        numbers = np.asarray(truth["classes"])
        difficult = np.asarray(truth.get("difficult", np.zeros(numbers.shape, bool)))
        real = self._objects_of("truth", truth["boxes"], numbers, difficult)
        found = self._objects_of("detections", boxes, classes, scores)
        self.images += 1
        for number in np.unique(np.concatenate([real[1], found[1]])):
            own, hits = real[1] == number, found[1] == number
            hard = real[2][own].astype(bool)
            self._objects[number] += int(np.sum(~hard))
            order = np.argsort(-found[2][hits], kind="stable")
            self._scores[number].append(found[2][hits][order])
            overlap = iou(found[0][hits][order], real[0][own])
            self._marks[number].append(self._marked(overlap, hard))

    def add_batch(self, labels: Mapping[str, Any], found: Found) -> None:
        """Adds a batch of images.

        Args:
            labels: as in `add`, with a batch axis first.
            found: the detections in them, such as `Detections`.
        """
        arrays = {name: np.asarray(value) for name, value in labels.items()}
        for index in range(len(arrays["classes"])):
            truth = {name: array[index] for name, array in arrays.items()}
            self.add(truth, *found.of_image(index))

    def _marked(self, overlap: np.ndarray, difficult: np.ndarray) -> np.ndarray:
        """Returns a mark for each detection of an image, which is the first axis."""
        return marks(overlap, difficult, self.least_iou)

    def report(self) -> APReport:
        """Returns the average precision over all images added so far."""
        rows = {
            name: class_ap(
                int(self._objects[number]),
                _joined(self._scores[number], np.float64),
                _joined(self._marks[number], np.int64),
            )
            for number, name in enumerate(self.class_names)
        }
        return APReport(
            rows,
            _mean([row.ap_07 for row in rows.values()]),
            _mean([row.ap_area for row in rows.values()]),
            self.images,
        )

    def _objects_of(
        self, what: str, boxes: Any, classes: Any, values: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Checks boxes, classes and one value each; returns them without padding."""
        corners: np.ndarray = np.asarray(boxes, np.float64).reshape(-1, 4)
        numbers, values = np.asarray(classes), np.asarray(values, np.float64)
        if not len(corners) == len(numbers) == len(values):
            raise BoxError(
                f"There must be one class and one score for each box of the {what}. "
                f"Received: boxes={np.shape(boxes)}, {numbers.shape}, {values.shape}. "
                "Pass one row an object."
            )
        kept = numbers >= 0
        corners, values = corners[kept], values[kept]
        numbers = numbers[kept].astype(np.int64)
        if numbers.size and numbers.max() >= len(self.class_names):
            raise BoxError(
                f"Classes of the {what} must be from 0 to {len(self.class_names) - 1}. "
                f"Received: class={numbers.max()}. Number them without background, in "
                "the order of class_names."
            )
        if not (np.isfinite(corners).all() and np.isfinite(values).all()):
            raise BoxError(
                f"Boxes and scores of the {what} must be finite. Received: a NaN or "
                "an infinity. Look for a training that diverged."
            )
        return corners, numbers, values


def marks(overlap: np.ndarray, difficult: np.ndarray, least_iou: float) -> np.ndarray:
    """Marks each detection of a class in an image as right, wrong or ignored.

    Args:
        overlap: IoU of the detections, best first, and the objects, [n, m].
        difficult: whether each object is difficult, bool [m].
        least_iou: least IoU of a right detection.

    Returns:
        int64 [n]: `RIGHT`, `WRONG` or `IGNORED`.
    """
    count, objects = overlap.shape
    result: np.ndarray = np.full(count, WRONG, np.int64)
    if not objects:
        return result
    taken: np.ndarray = np.zeros(objects, bool)
    for number, best in enumerate(overlap.argmax(axis=1)):
        if overlap[number, best] < least_iou:
            continue
        if difficult[best]:
            result[number] = IGNORED
        elif not taken[best]:
            result[number], taken[best] = RIGHT, True
    return result


def class_ap(objects: int, scores: np.ndarray, marked: np.ndarray) -> ClassAP:
    """Returns the average precision of one class.

    Args:
        objects: number of objects that are not difficult.
        scores: scores of the detections in all images, [n].
        marked: mark of each detection, [n]: see `marks`.
    """
    counts = marked != IGNORED
    scores, right = scores[counts], marked[counts] == RIGHT
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    # The last detection of each score.
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    found = hits[ends]
    precision = found / (ends + 1)
    recall = found / max(objects, 1)
    if not objects:
        return ClassAP(0, len(scores), recall, precision, None, None)
    # From the right: the largest precision at a recall of at least that.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    # Compared as whole numbers: 3 of 10 objects are a recall of 0.3, but 3 * 0.1 > 0.3.
    firsts = [np.searchsorted(10 * found, t * objects) for t in range(11)]
    elevens = [envelope[i] if i < len(envelope) else 0.0 for i in firsts]
    ap_07, ap_area = float(np.mean(elevens)), float(np.sum(steps * envelope))
    return ClassAP(objects, len(scores), recall, precision, ap_07, ap_area)


def _joined(parts: list[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, kind)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
