"""Writes the objects that the float model, its student and its file find in images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.data import Dataset
from gmpq_tf.export.tflite.objects import found_objects, returns_objects
from gmpq_tf.export.tflite.region_detector import open_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.files import replace_file
from gmpq_tf.models import load_model
from gmpq_tf.report.objects import (
    Curve,
    Found,
    ShownObjects,
    curves_arrays,
    objects_arrays,
)
from gmpq_tf.task import outputs_of
from gmpq_tf.task.box_task import BoxMeter
from gmpq_tf.task.task import Task
from gmpq_tf.task.tasks import task_of
from gmpq_tf.train.attribute import to_pixels


def write_objects(
    path: Path, models: Mapping[str, Path], dataset: Dataset, split: str, count: int
) -> None:
    """Writes the first images of a split with the objects each model finds in them.

    Args:
        path: the file `objects.npz`, which `gmpq_tf.report` reads.
        models: name -> a .keras or a .tflite file.
        dataset: the images, with the labels of the data set.
        split: "validation" or "test".
        count: number of images.
    """
    batches = dataset.test() if split == "test" else dataset.validation()
    with dataset.naming_damaged_images():
        images, labels = next(iter(batches.unbatch().batch(count)))
    images, labels = np.asarray(images), keras.tree.map_structure(np.asarray, labels)
    keras_files = [each for each in models.values() if each.suffix != ".tflite"]
    task = task_of(load_model(keras_files[0]))
    shown = ShownObjects(
        to_pixels(images, dataset),
        tuple(dataset.class_names),
        Found(labels["boxes"], labels["classes"], np.ones(labels["classes"].shape)),
        {name: found_by(file, task, images) for name, file in models.items()},
    )
    with replace_file(path) as temporary:
        arrays: dict[str, Any] = objects_arrays(shown)
        np.savez_compressed(temporary, **arrays)


def found_by(path: Path, task: Task, images: np.ndarray) -> Found:
    """Returns the objects a model finds in images, best first.

    Args:
        path: a .keras or a .tflite file.
        task: task of the model, or of the float model it was made from.
        images: [N, H, W, C], scaled as the model reads them.
    """
    if path.suffix == ".tflite":
        file = open_tflite(path)
        outputs: Any = file.predict(images, batch_size=len(images))
        if isinstance(file, TFLiteModel) and returns_objects(file):
            return _padded(found_objects(outputs))
        return _padded(task.found(dict(zip(_names(task), outputs, strict=True))))
    model = load_model(path)
    outputs = keras.tree.flatten(model.predict_on_batch(images))
    names = [output.name for output in outputs_of(model)]
    return _padded(task.found(dict(zip(names, outputs, strict=True))))


def write_curves(path: Path, meters: Mapping[str, Any]) -> None:
    """Writes precision against recall of every class, beside an evaluation.

    Args:
        path: the file `precision_recall.npz`.
        meters: prefix of the model ("", "tflite_", "twin_") -> its meter; meters of
            other tasks are left out.
    """
    boxes = {n: meter for n, meter in meters.items() if isinstance(meter, BoxMeter)}
    if not boxes:
        path.unlink(missing_ok=True)
        return
    curves = {name: curves_of(meter) for name, meter in boxes.items()}
    names = next(iter(boxes.values())).mean_ap.class_names
    with replace_file(path) as temporary:
        arrays: dict[str, Any] = curves_arrays(names, curves)
        np.savez_compressed(temporary, **arrays)


def curves_of(meter: BoxMeter) -> dict[str, Curve]:
    """Returns class -> its curve, for classes that have an object."""
    return {
        name: Curve(row.recall, row.precision, row.ap_area)
        for name, row in meter.mean_ap.report().classes.items()
        if row.ap_area is not None
    }


def _names(task: Task) -> list[str]:
    return [output.name for output in outputs_of(task.model)]


def _padded(found: Any) -> Found:
    real = np.arange(found.classes.shape[1]) < found.counts[:, None]
    return Found(found.boxes, np.where(real, found.classes, -1), found.scores)
