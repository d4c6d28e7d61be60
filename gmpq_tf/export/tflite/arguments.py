"""Checks of the arguments of `export_tflite`, before any work."""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Sequence
from typing import Any

import keras

from gmpq_tf.export.errors import ExportError
from gmpq_tf.files import FileWriteError, check_target
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.calibrate import input_quantizers, is_calibrated

STORAGES = ("fast", "packed", "smallest")
# TFLite Micro has no INT2, and its INT4 convolutions round twice.
STORAGES_OF = {"litert": STORAGES, "micro": ("fast",)}
TYPES = ("float32", "int8", "uint8")
FLOAT_LAYERS = ("refuse", "allow")
# How a file is judged, the default first. The exact arithmetic is known for XNNPACK
# only.
VERIFICATIONS_OF = {"litert": ("exact", "agreement"), "micro": ("agreement",)}


def check_path(path: str | os.PathLike[str]) -> None:
    """Refuses a path to which no file can be written, before any work.

    Raises:
        ExportError: a folder is there, or its own cannot be made or written to.
    """
    try:
        check_target(path)
    except FileWriteError as error:
        raise ExportError(
            "The path must be writable. "
            f"Received: path={os.fspath(path)!r} ({error}). Choose another one."
        ) from error


def check_effort(least_agreement: Any, latency_runs: Any) -> None:
    """Refuses an invalid share of agreement or an invalid number of timed runs.

    Args:
        least_agreement: a number from 0 to 1; None: not asked for.
        latency_runs: 0 or more.

    Raises:
        ExportError: one of them is out of range.
    """
    share = 0 if least_agreement is None else least_agreement
    if not isinstance(share, numbers.Real) or not 0 <= float(share) <= 1:
        raise ExportError(
            "least_agreement must be a share from 0 to 1. "
            f"Received: least_agreement={least_agreement!r}. Write 0.8 for 80 %."
        )
    if not isinstance(latency_runs, numbers.Integral) or latency_runs < 0:
        raise ExportError(
            "latency_runs must be a whole number, 0 for none. "
            f"Received: latency_runs={latency_runs!r}."
        )


def check_batch(batch: Any) -> None:
    """Refuses a batch that is not a whole number of images, 1 or more.

    Raises:
        ExportError: it is something else.
    """
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ExportError(
            "batch must be a whole number of images, 1 or more. "
            f"Received: batch={batch!r}. Leave it out for any number."
        )


def check_choices(
    storage: str,
    input_type: str,
    output_type: str,
    runtime: str,
    float_layers: str = "refuse",
) -> None:
    """Refuses unknown choices, and storages that the runtime lacks.

    Raises:
        ExportError: an argument is invalid; the nearest valid choice is given.
    """
    choices = {
        "runtime": (runtime, tuple(STORAGES_OF)),
        "storage": (storage, STORAGES),
        "input_type": (input_type, TYPES),
        "output_type": (output_type, TYPES),
        "float_layers": (float_layers, FLOAT_LAYERS),
    }
    for what, (value, valid) in choices.items():
        check_choice(what, value, valid)
    if storage not in STORAGES_OF[runtime]:
        raise ExportError(
            f"storage must be {' or '.join(STORAGES_OF[runtime])} with "
            f"runtime={runtime!r}, which cannot compute INT2, and INT4 only with codes "
            f"off by one. Received: storage={storage!r}. Leave it out."
        )


def check_choice(what: str, value: str, valid: Sequence[str]) -> None:
    """Refuses a value that is not one of the valid choices of an option.

    Raises:
        ExportError: the value is another one; the nearest valid one is named.
    """
    if value not in valid:
        raise ExportError(
            f"{what} must be one of {', '.join(valid)}. "
            f"Received: {what}={value!r}. {suggest(str(value), valid)}"
        )


def verification(runtime: str, verify: str | None) -> str:
    """How a file is judged: `verify`, or by default as strictly as the runtime allows.

    Raises:
        ExportError: an unknown value, or the runtime's arithmetic is not known.
    """
    known, every = VERIFICATIONS_OF[runtime], VERIFICATIONS_OF["litert"]
    if verify is not None and verify not in every:
        raise ExportError(
            f"verify must be {' or '.join(every)}. Received: verify={verify!r}. "
            f"{suggest(str(verify), every)}"
        )
    if verify is not None and verify not in known:
        raise ExportError(
            f"verify must be {' or '.join(known)} with runtime={runtime!r}, whose "
            f"kernels round twice. Received: verify={verify!r}. Leave it out."
        )
    return verify or known[0]


def check_metadata(metadata: Any) -> None:
    """Refuses metadata that cannot be stored as JSON.

    Raises:
        ExportError: it holds other values.
    """
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ExportError(
            "metadata must be plain JSON values. "
            f"Received: metadata={metadata!r:.200} ({error}). Convert arrays to lists."
        ) from error


def check_student(student: Any) -> None:
    """Refuses anything but a quantized, calibrated Keras model.

    Raises:
        ExportError: it has no quantizers, or its ranges were not set from data.
    """
    if not isinstance(student, keras.Model):
        raise ExportError(
            "student must be a Keras model. "
            f"Received: student={type(student).__name__}. Load it with "
            "keras.models.load_model after importing gmpq_tf."
        )
    if not input_quantizers(student):
        raise ExportError(
            "The model must be quantized. "
            f"Received: model={student.name!r} without quantizers. "
            "Pass what gmpq_tf.quantize_model(model, policy) returned."
        )
    if not is_calibrated(student):
        raise ExportError(
            "Every activation range must have been set from data. "
            f"Received: model={student.name!r}, not calibrated. "
            "Call gmpq_tf.calibrate(student, dataset) first."
        )
