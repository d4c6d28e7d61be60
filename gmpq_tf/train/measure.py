"""Runs a model, its integer twin and its file on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.export.tflite.objects import found_objects, returns_objects
from gmpq_tf.export.tflite.outputs import OutputReport, Tally
from gmpq_tf.export.tflite.region_detector import RegionDetector
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.task import Output, OutputKind, outputs_of
from gmpq_tf.task.kinds import read_kind
from gmpq_tf.task.output_names import check_finite
from gmpq_tf.task.task import Task
from gmpq_tf.task.tasks import task_of
from gmpq_tf.train.show_objects import write_curves
from gmpq_tf.transform.forward import predictor

# Figures of a file: of its decisions, and of its errors where outputs are numbers.
FILE_DECISIONS = ("tflite_accuracy", "agreement", "ties", "twin_agreement")
FILE_ERRORS = ("mean_error", "max_error", "relative_error", "twin_max_error")
# What is shipped, or stands for it: file, twin, model.
SHIPPED = ("tflite_", "twin_", "")
# What computed the outputs of each prefix, for messages.
WHOSE = {"": "the Keras model", "tflite_": "the file", "twin_": "the integer twin"}


def measure_both(
    model: keras.Model,
    tflite: TFLiteModel | RegionDetector | None,
    batches: Iterable,
    output_kind: str | OutputKind | None = None,
    twin: keras.Model | None = None,
    class_names: Sequence[str] = (),
    task: Task | None = None,
    curves: Path | None = None,
    reference: keras.Model | None = None,
) -> dict[str, Any]:
    """Runs a Keras model, its integer twin and a .tflite file on the same images.

    Args:
        model: a classifier or a detector.
        tflite: its file, or None.
        batches: pairs (images, labels as the data set has them) or (images, None);
            images are [N, H, W, C], scaled as the model reads them.
        output_kind: meaning of the output that decides; None: that of the task.
        twin: `integer_twin` of the model, or None.
        class_names: one name per class.
        task: what the model is trained for; None: boxes for a detector, else classes.
        curves: file to write precision against recall to, for detectors; None: no file.
        reference: the float model, to compare with; None: not compared.

    Returns:
        images (their number), accuracy, tflite_accuracy, agreement, twin_accuracy,
        twin_agreement (of twin and file), compared (the decisions, in words) and the
        errors of the file; None where there is no file or no twin. Outputs that are
        plain numbers have errors, and no accuracy or agreement. With a reference also
        float_agreement, or for numbers float_error and float_relative_error, of it and
        the file (else the twin, else the model). Other metrics of the
        task have their own names, with tflite_ and twin_ before those of the file and
        the twin; a file that returns detected objects has only these.

    Raises:
        TaskError: outputs that are measured are NaN or infinite, or labels do not fit.
    """
    task, names = task or task_of(model), list(model.output_names)
    if len(names) > 1:  # Keras has the names of layers, not the keys of a dict
        names = [output.name for output in outputs_of(model)]
    # A file that returns objects has no scores to compare with Keras's.
    finds = isinstance(tflite, TFLiteModel) and returns_objects(tflite)
    output = _deciding(model, task, output_kind)
    tally, images = Tally(output, None), 0
    beside = Tally(output, None)
    models = {"": model, "tflite_": tflite, "twin_": twin}
    models = {p: _predictor(each) for p, each in models.items() if each is not None}
    meters = {prefix: task.meter(class_names) for prefix in models}
    floats = None if reference is None else _predictor(reference)
    for pixels, labels in batches:
        pixels = np.asarray(pixels)
        computed = _computed(models, pixels)
        objects = found_objects(computed.pop("tflite_")) if finds else None
        named: dict[str, Any] = {
            prefix: dict(zip(names, each, strict=True))
            for prefix, each in computed.items()
        }
        if finds:
            named["tflite_"] = objects
        deciding = {prefix: each[task.deciding] for prefix, each in computed.items()}
        known = output.kind.decides and task.placewise and labels is not None
        _add(tally, deciding, np.asarray(task.decided(labels)) if known else None)
        for prefix, meter in meters.items():
            if meter is not None and labels is not None:
                if isinstance(named[prefix], dict):
                    check_finite(named[prefix], WHOSE[prefix])
                meter.add(named[prefix], labels)
        if floats is not None:
            ours = next(deciding[p] for p in SHIPPED if p in deciding)
            beside.add(_listed(floats(pixels))[task.deciding], ours)
        images += len(pixels)
    if curves is not None:
        write_curves(curves, meters)
    compared = tflite is not None and not finds
    return {
        "images": images,
        **_compared(tally.report(), output.kind.decides, compared),
        **({} if floats is None else _beside(beside.report(), output.kind.decides)),
        **_figures(meters),
    }


def _computed(
    models: Mapping[str, Callable], pixels: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """What each model returns for a batch, in the order of its outputs.

    Args:
        models: prefix -> `_predictor` of a Keras model, its integer twin or its file.
        pixels: [B, H, W, C], as the model reads them.
    """
    return {prefix: _listed(predict(pixels)) for prefix, predict in models.items()}


def _predictor(model: keras.Model | TFLiteModel | RegionDetector) -> Callable:
    """A function [B, H, W, C] -> outputs of the batch."""
    if isinstance(model, keras.Model):
        return predictor(model)
    return lambda pixels: model.predict(pixels, batch_size=len(pixels))


def _add(
    tally: Tally, deciding: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> None:
    """Adds a batch to a tally: Keras against the file, and the twin against the file.

    Args:
        tally: counts equal and right decisions, and adds up errors.
        deciding: prefix -> the output that decides, [B, ...]. "" (Keras) is always
            there. Without "tflite_" Keras and the twin are compared with themselves.
        labels: labels of the batch, [B] or [B, ...], or None.
    """
    tally.add(deciding[""], deciding.get("tflite_", deciding[""]), labels)
    if "twin_" in deciding:
        exact = deciding["twin_"]
        tally.add_twin(exact, deciding.get("tflite_", exact), labels)


def _compared(row: OutputReport, decides: bool, has_file: bool) -> dict[str, Any]:
    """The figures of the comparison; those of the file are None if there is none."""
    errors = () if decides else FILE_ERRORS
    of_file = {n: getattr(row, n) for n in FILE_DECISIONS + errors}
    return {
        "accuracy": row.keras_accuracy,
        "twin_accuracy": row.twin_accuracy,
        "compared": row.compared,
        **(of_file if has_file else dict.fromkeys(of_file)),
    }


def _beside(row: OutputReport, decides: bool) -> dict[str, Any]:
    """The figures of the comparison with the float model."""
    if decides:
        return {"float_agreement": row.agreement}
    return {
        "float_error": row.mean_error,
        "float_relative_error": row.relative_error,
    }


def _deciding(
    model: keras.Model, task: Task, output_kind: str | OutputKind | None
) -> Output:
    """The output that decides, with the kind of the task or of the flag."""
    if output_kind is None:
        return task.output(model)
    shape = tuple(model.outputs[task.deciding].shape[1:])
    return Output("output", read_kind(output_kind), "stated", shape)


def _listed(outputs: Any) -> list[np.ndarray]:
    """Arrays in the order of `model.outputs`."""
    return [np.asarray(each) for each in keras.tree.flatten(outputs)]


def _figures(meters: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the figures of all meters, each name with its meter's prefix."""
    return {
        f"{prefix}{name}": figure
        for prefix, meter in meters.items()
        if meter is not None
        for name, figure in meter.report().items()
    }
