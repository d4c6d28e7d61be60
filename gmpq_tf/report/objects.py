"""Files of objects found in images, and of precision against recall, for the report.

Both are `.npz` files of plain arrays: `objects.npz` in the workdir, and
`precision_recall.npz` beside each evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmpq_tf.report.read_maps import check_array, check_images, read_npz
from gmpq_tf.report.schema import REMEDY, ReportError, take

OBJECTS, CURVES = "objects.npz", "precision_recall.npz"
LONGEST_CLASS = 40


@dataclass(frozen=True)
class Curve:
    """Precision and recall of one model for one class.

    Args:
        recall: [n], rising, 0 to 1.
        precision: [n], 0 to 1.
        area: average precision, 0 to 1.
    """

    recall: np.ndarray
    precision: np.ndarray
    area: float


@dataclass(frozen=True)
class Found:
    """The objects of some images: boxes, classes and scores, padded to K per image.

    Args:
        boxes: [N, K, 4] as (ymin, xmin, ymax, xmax), relative to the image.
        classes: [N, K]; -1: no object.
        scores: [N, K], 0 to 1.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def of_image(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns boxes [n, 4], classes [n] and scores [n] of one image."""
        real = self.classes[index] >= 0
        return (
            self.boxes[index][real],
            self.classes[index][real],
            self.scores[index][real],
        )


@dataclass(frozen=True)
class ShownObjects:
    """Images with the objects in them, and those that models found.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3.
        class_names: one name per class.
        truth: the labelled objects, with scores of 1.
        models: name of a model -> the objects that it found.
    """

    images: np.ndarray
    class_names: tuple[str, ...]
    truth: Found
    models: Mapping[str, Found]


def objects_arrays(shown: ShownObjects) -> dict[str, np.ndarray]:
    """Returns the arrays of `objects.npz`, in the shapes of `ShownObjects`."""
    arrays: dict[str, np.ndarray] = {
        "images": shown.images,
        "class_names": np.array(shown.class_names),
        "models": np.array(list(shown.models)),
    }
    for number, found in enumerate((shown.truth, *shown.models.values())):
        arrays[f"boxes{number}"] = found.boxes
        arrays[f"classes{number}"] = found.classes
        arrays[f"scores{number}"] = found.scores
    return arrays


def read_objects(workdir: str | Path) -> ShownObjects:
    """Reads images and the objects found in them.

    Raises:
        ReportError: the file is missing, or an array is of the wrong shape.
    """
    arrays = read_npz(Path(workdir), OBJECTS)
    images = take(arrays, "images")
    check_images(images)
    names = _texts(arrays, "class_names")
    models = _texts(arrays, "models")
    every = [
        _found(arrays, number, len(images), names) for number in range(len(models) + 1)
    ]
    return ShownObjects(
        images, names, every[0], dict(zip(models, every[1:], strict=True))
    )


def curves_arrays(
    class_names: tuple[str, ...], curves: Mapping[str, Mapping[str, Curve]]
) -> dict[str, np.ndarray]:
    """Returns the arrays of `precision_recall.npz`.

    Args:
        class_names: one name per class.
        curves: prefix of the model ("", "tflite_" or "twin_") -> class -> its curve.

    Returns:
        "class_names" [classes], and for each curve its points [2, n] and area, a
        scalar.
    """
    arrays: dict[str, np.ndarray] = {"class_names": np.array(class_names)}
    for prefix, of_classes in curves.items():
        for name, curve in of_classes.items():
            key = f"{prefix}{class_names.index(name)}"
            arrays[f"points_{key}"] = np.stack([curve.recall, curve.precision])
            arrays[f"area_{key}"] = np.array(curve.area)
    return arrays


def read_curves(folder: Path, prefix: str = "") -> dict[str, Curve]:
    """Reads the curves of a model, by class.

    Args:
        folder: folder of an evaluation.
        prefix: "" for the Keras model, "tflite_" for its file.

    Raises:
        ReportError: the file is missing, or an array is of the wrong shape.
    """
    arrays = read_npz(folder, CURVES)
    found = {}
    for number, name in enumerate(_texts(arrays, "class_names")):
        points = arrays.get(f"points_{prefix}{number}")
        if points is None:
            continue
        check_array(f"points of {name}", points, (2, None))
        area = take(arrays, f"area_{prefix}{number}")
        check_array(f"area of {name}", area, ())
        if name in found:  # two long names that begin alike
            name = f"{name} ({number})"
        found[name] = Curve(points[0], points[1], float(area))
    return found


def _texts(arrays: Mapping[str, np.ndarray], key: str) -> tuple[str, ...]:
    array = take(arrays, key)
    if array.dtype.kind != "U" or array.ndim != 1:
        raise ReportError(
            f"{key} must be texts, [n]. Received: dtype={array.dtype}, "
            f"shape={array.shape}. {REMEDY}"
        )
    return tuple(str(text)[:LONGEST_CLASS] for text in array)


def _found(
    arrays: Mapping[str, Any], number: int, images: int, names: tuple[str, ...]
) -> Found:
    boxes = take(arrays, f"boxes{number}")
    check_array(f"boxes{number}", boxes, (images, None, 4))
    shape = (images, boxes.shape[1])
    classes, scores = take(arrays, f"classes{number}"), take(arrays, f"scores{number}")
    check_array(f"classes{number}", classes, shape)
    check_array(f"scores{number}", scores, shape)
    if not np.isfinite(boxes).all() or classes.max(initial=-1) >= len(names):
        raise ReportError(
            f"Objects must have finite boxes and known classes. Received: those of "
            f"{number} in {OBJECTS}. {REMEDY}"
        )
    return Found(boxes, classes, scores)
