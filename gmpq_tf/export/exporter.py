"""Export a quantized Keras model to a TFLite file that computes what it does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.files import replace_file, write_json
from gmpq_tf.graph import GraphError
from gmpq_tf.inputs import InputError
from gmpq_tf.names import suggest
from gmpq_tf.transform.batches import BATCH_SIZE, Batch, ModelInputs, batches_of
from gmpq_tf.transform.calibrate import input_quantizers, is_calibrated

from .errors import ExportError
from .float_model import float_tflite
from .lowering import Lowered, lower
from .runtime import TFLiteModel, latencies
from .verify import (
    LOCAL_IMAGES,
    Deviation,
    LayerReport,
    Outputs,
    compare_outputs,
    layer_reports,
    mean_deviations,
    random_inputs,
)

STORAGES = ("fast", "packed", "smallest")
TYPES = ("float32", "int8", "uint8")
LEAST_AGREEMENT = 0.95
REPORT_NAME = "export_report.json"
LATENCY_RUNS = 20
SEED = 0


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the Keras model.

    Args:
        path: the file.
        storage: "fast", "packed" or "smallest".
        input_type: type of the file's inputs.
        output_type: type of its outputs.
        file_bytes: size of the file.
        data: "given", or "random" where the caller had no images.
        images: how many inputs were compared.
        agreement: share of equal decisions (largest score) of Keras and the file.
        builtin_agreement: likewise with the built-in kernels, on at most 256 or so.
        max_steps: largest difference of an output, in steps of its grid.
        mean_steps: mean difference.
        keras_accuracy: share of right decisions, where there are labels.
        tflite_accuracy: likewise of the file.
        layers: one row a layer.
        storage_bytes: size of the file in each storage.
        latency_ms: median milliseconds of one image in each storage and in the float
            model ("float"), one thread, measured in turns; {} where not asked for. One
            that the runtime or TensorFlow's converter refuses is missing.
    """

    path: str
    storage: str
    input_type: str
    output_type: str
    file_bytes: int
    data: str
    images: int
    agreement: float
    builtin_agreement: float
    max_steps: float
    mean_steps: float
    keras_accuracy: float | None
    tflite_accuracy: float | None
    layers: tuple[LayerReport, ...]
    storage_bytes: dict[str, int]
    latency_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": 1, **dataclasses.asdict(self)}


def export_tflite(
    student: keras.Model,
    path: str | os.PathLike[str],
    storage: str = "fast",
    input_type: str = "float32",
    output_type: str = "float32",
    verify_data: Any = None,
    labels: Any = None,
    metadata: Mapping[str, Any] | None = None,
    scale_codes: bool = False,
    latency_runs: int = LATENCY_RUNS,
    least_agreement: float = LEAST_AGREEMENT,
) -> ExportReport:
    """Write a quantized model as TFLite, and check the file against the model.

    The file is written only if its kernel codes are the trained ones, every layer
    computes what the Keras layer does on the inputs the file's layer had, and, on
    images of the caller, enough of the decisions agree. `export_report.json` goes
    beside.

    Args:
        student: from `gmpq_tf.quantize_model`, calibrated and fine-tuned.
        path: the `.tflite` file to make or to replace.
        storage: "fast": INT8 kernels; "packed": INT4 where they have 4 bits or fewer,
            two codes a byte; "smallest": also INT2 where they have 2, four codes a
            byte. Convolutions in INT4 and INT2 are written as dense layers over
            patches, which is exact but slower. Depthwise and grouped ones stay INT8,
            and so do those with fewer than 32 filters or too small to gain from it,
            and dense rows that do not fill whole bytes.
        input_type: "float32", or "int8" or "uint8" for codes of the input's grid.
        output_type: likewise; with "float32" a final softmax is computed in float.
        verify_data: inputs as `student` takes them: an array [images, ...]; for several
            inputs a dict of arrays by name, or a list in the order of
            `student.inputs`; or an iterable (`tf.data`, `PyDataset`) of batches of
            inputs or of (inputs, labels). None: 64 random ones in the calibrated range.
        labels: class numbers or one-hot rows, where `verify_data` holds arrays; of
            several outputs a list, tuple or dict.
        metadata: stored in the file as JSON, e.g. input scaling and class names;
            `read_metadata` gives it back.
        scale_codes: store kernel codes times the largest power of two that fits, with
            steps over it: the same weights. For runtimes without XNNPACK, whose kernels
            round twice and lose codes where accumulators are small, as at 2 and 3 bits.
        latency_runs: timed runs of every storage and of the float model for the
            report; 0: not measured.
        least_agreement: share of equal decisions on `verify_data` below which nothing
            is written, 0 to 1. In networks of fifty layers each rounding of a sum that
            Keras makes in float, and lands beside a half, spreads; with a thousand
            classes a few per cent of close decisions change both ways.

    Returns:
        An `ExportReport`.

    Raises:
        ExportError: a model that is not quantized or not calibrated, a layer that
            TFLite cannot compute in integers, a path that cannot be written, or a file
            that does not compute the model; `path` is then as it was.
    """
    path = Path(path)
    _check_choices(storage, input_type, output_type)
    _check_metadata(metadata)
    _check_student(student)
    choices = (input_type, output_type, dict(metadata or {}), scale_codes)
    lowered = _lower(student, storage, *choices)
    given = verify_data is not None
    if not given:
        verify_data = random_inputs(student, lowered.input_grids, SEED)
    batches = _batches(lowered, verify_data, labels)
    first = list(islice(batches, _local_batches(lowered)))
    if not first:
        raise ExportError(
            "Verification needs at least one input. "
            "Received: verify_data without images. Pass some, or None for random ones."
        )
    local = [[a[:LOCAL_IMAGES] for a in arrays] for arrays, _ in first]
    deviations = mean_deviations(lowered, local)
    layers = layer_reports(lowered, deviations)
    _check_layers(layers, deviations)
    outputs = compare_outputs(student, lowered, chain(first, batches))
    if given and outputs.agreement < least_agreement:
        raise ExportError(_disagreement(outputs, deviations, least_agreement))
    contents = {storage: lowered.content}
    for other in STORAGES:
        contents.setdefault(other, _lower(student, other, *choices).content)
    report = ExportReport(
        path=str(path),
        storage=storage,
        input_type=input_type,
        output_type=output_type,
        file_bytes=len(lowered.content),
        data="given" if given else "random",
        layers=tuple(layers),
        storage_bytes={name: len(contents[name]) for name in STORAGES},
        latency_ms=measure_latency(student, contents, latency_runs),
        **dataclasses.asdict(outputs),
    )
    _write(path, lowered.content, report)
    return report


def _batches(lowered: Lowered, data: Any, labels: Any) -> Iterator[Batch]:
    try:
        yield from batches_of(
            ModelInputs(lowered.graph), data, labels, largest=BATCH_SIZE
        )
    except InputError as error:
        raise ExportError(str(error)) from error


def _local_batches(lowered: Lowered) -> int:
    """How many batches hold `LOCAL_IMAGES`; one, unless the model says its size."""
    size = ModelInputs(lowered.graph).batch_size
    return 1 if size is None else -(-LOCAL_IMAGES // size)


def measure_latency(
    student: keras.Model, contents: Mapping[str, bytes], runs: int
) -> dict[str, float]:
    """Median milliseconds of one image in each file and in the float model.

    Args:
        student: from `gmpq_tf.quantize_model`.
        contents: storage -> bytes of the file.
        runs: timed runs of each; 0: nothing is measured.
    """
    if not runs:
        return {}
    contents, usable = dict(contents), {}
    # An older runtime may lack INT2, and the converter refuse the float model: neither
    # says anything against the file that is being written.
    with contextlib.suppress(ExportError):
        contents["float"] = float_tflite(student)
    for name, content in contents.items():
        with contextlib.suppress(ExportError):
            TFLiteModel(content)
            usable[name] = content
    return {n: 1000 * s for n, s in latencies(usable, runs).items()}


def _check_choices(storage: str, input_type: str, output_type: str) -> None:
    choices = {
        "storage": (storage, STORAGES),
        "input_type": (input_type, TYPES),
        "output_type": (output_type, TYPES),
    }
    for what, (value, valid) in choices.items():
        if value not in valid:
            raise ExportError(
                f"{what} must be one of {', '.join(valid)}. "
                f"Received: {what}={value!r}. {suggest(str(value), valid)}"
            )


def _check_metadata(metadata: Any) -> None:
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ExportError(
            "metadata must be plain JSON values. "
            f"Received: metadata={metadata!r:.200} ({error}). Convert arrays to lists."
        ) from error


def _check_student(student: Any) -> None:
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


def _lower(student: Any, *choices: Any) -> Lowered:
    try:
        return lower(student, *choices)
    except GraphError as error:
        raise ExportError(str(error)) from error


def _check_layers(layers: list[LayerReport], deviations: list[Deviation]) -> None:
    for layer in layers:
        if not layer.codes_equal:
            raise ExportError(
                "Stored kernel codes must be the trained ones. "
                f"Received: layer={layer.name!r}, whose codes in the file differ. "
                "Nothing was written; please report the layer's configuration."
            )
    first = next((d for d in deviations if d.excessive), None)
    if first is not None:
        raise ExportError(
            "Every layer of the file must compute what the Keras layer does. "
            f"Received: layer={first.name!r} ({first.kind}), of whose output codes "
            f"{first.off:.1%} are off, {first.far:.1%} by more than one step. "
            "Nothing was written; please report the layer's configuration."
        )


def _disagreement(outputs: Outputs, deviations: list[Deviation], least: float) -> str:
    worst = max(deviations, key=lambda d: d.off)
    return (
        "The file must decide as the Keras model does on "
        f"{least:.0%} of the images. "
        f"Received: agreement={outputs.agreement:.1%} on {outputs.images} images. "
        "Given equal inputs every layer is right but for rounding (most of it at "
        f"{worst.name!r}, {worst.off:.2%} of whose codes are a step off), so the "
        "scores are too close to call: fine-tune longer, give layers more bits, or, if "
        "the accuracy of both is the same, lower least_agreement."
    )


def _write(path: Path, content: bytes, report: ExportReport) -> None:
    try:
        with replace_file(path) as temporary:
            temporary.write_bytes(content)
        write_json(path.with_name(REPORT_NAME), report.to_json())
    except OSError as error:
        raise ExportError(
            "The path must be writable. "
            f"Received: path={str(path)!r} ({error}). Choose another folder."
        ) from error
