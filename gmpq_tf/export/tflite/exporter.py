"""Export a quantized Keras model to a TFLite file that computes what it does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.data import InputScaling
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.float_model import float_tflite
from gmpq_tf.export.tflite.lowering import Lowered, lower
from gmpq_tf.export.tflite.metadata import facts
from gmpq_tf.export.tflite.outputs import (
    NEAR_STEPS,
    OutputReport,
    Outputs,
    compare_outputs,
)
from gmpq_tf.export.tflite.runtime import TFLiteModel, latencies
from gmpq_tf.export.tflite.verify import (
    LOCAL_IMAGES,
    Deviation,
    LayerReport,
    layer_reports,
    mean_deviations,
    random_inputs,
)
from gmpq_tf.files import json_text, replace_files
from gmpq_tf.graph import GraphError
from gmpq_tf.inputs import InputError
from gmpq_tf.spelling import suggest
from gmpq_tf.task import Output, OutputKind, TaskError, outputs_of
from gmpq_tf.transform.batches import BATCH_SIZE, Batch, ModelInputs, batches_of
from gmpq_tf.transform.calibrate import input_quantizers, is_calibrated

STORAGES = ("fast", "packed", "smallest")
# TFLite Micro has no INT2, and rounds what it reads of INT4 convolutions twice.
STORAGES_OF = {"litert": STORAGES, "micro": ("fast",)}
TYPES = ("float32", "int8", "uint8")
LEAST_AGREEMENT = 0.95
REPORT_NAME = "export_report.json"
LATENCY_RUNS = 20
# Mean distance of biases from whole units above which they were never rounded to them:
# 0.25 where they lie anywhere, 0.06 and less where only float32 moved them.
LOOSE_UNITS = 0.1
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
        agreement: share of equal decisions of Keras and the file, in the output in
            which it is least; where none decides anything, the share of its numbers
            within `near_steps` steps.
        builtin_agreement: likewise with the built-in kernels, on at most 256 or so.
        ties: share of decisions that differ, but between scores that are equal in Keras
            or in the file.
        max_steps: largest difference of an output, in steps of its grid.
        mean_steps: mean difference, in the output in which it is largest.
        keras_accuracy: share of right decisions, where there are labels and one output
            that decides something.
        tflite_accuracy: likewise of the file.
        outputs: one row an output: what it is, and what was compared.
        unsnapped_layers: layers whose biases were not rounded before by `snap_biases`.
        layers: one row a layer.
        storage_bytes: size of the file in each storage.
        latency_ms: median milliseconds of one image in each storage and in the float
            model ("float"), one thread, measured in turns; {} where not asked for. One
            that the runtime or TensorFlow's converter refuses is missing.
        runtime: "litert" or "micro": whose kernels `agreement` is of.
    """

    path: str
    storage: str
    input_type: str
    output_type: str
    file_bytes: int
    data: str
    images: int
    agreement: float | None
    builtin_agreement: float | None
    ties: float | None
    max_steps: float | None
    mean_steps: float | None
    keras_accuracy: float | None
    tflite_accuracy: float | None
    outputs: tuple[OutputReport, ...]
    unsnapped_layers: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    storage_bytes: dict[str, int]
    latency_ms: dict[str, float]
    runtime: str = "litert"

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
    output_kinds: str | OutputKind | Mapping | Sequence | None = None,
    near_steps: float = NEAR_STEPS,
    batch: int | None = None,
    runtime: str = "litert",
    class_names: Sequence[str] | None = None,
    scaling: InputScaling | Mapping[str, Any] | str | None = None,
) -> ExportReport:
    """Write a quantized model as TFLite, and check the file against the model.

    The file is written only if its kernel codes are the trained ones, every layer
    computes what the Keras layer does on the inputs the file's layer had, and, on
    images of the caller, enough of the decisions agree, or of the numbers are near.
    `export_report.json` goes beside.

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
        labels: class numbers or one-hot rows, zeros and ones, or numbers, as the
            outputs are, where `verify_data` holds arrays; of several outputs a list,
            tuple or dict.
        metadata: stored in the file as JSON, e.g. input scaling and class names;
            `read_metadata` gives it back.
        scale_codes: store kernel codes times the largest power of two that fits, with
            steps over it: the same weights. For runtimes without XNNPACK, whose kernels
            round twice and lose codes where accumulators are small, as at 2 and 3 bits.
        latency_runs: timed runs of every storage and of the float model for the
            report; 0: not measured.
        least_agreement: share of equal decisions (or ties), or of near numbers, on
            `verify_data` below which nothing is written, 0 to 1. In networks of fifty
            layers each rounding of a sum that Keras makes in float, and lands beside a
            half, spreads; with a thousand classes a few per cent of close decisions
            change both ways.
        output_kinds: what the outputs say: "classes" (the largest score decides),
            "binary" (each number is a probability, decided at 0.5), "binary_logit"
            (decided at 0) or "numbers"; for all outputs, or a dict by name, or a list.
            None: what graph, loss and labels say; see `gmpq_tf.task.outputs_of`.
        near_steps: numbers this many steps of their grid apart are near.
        batch: images that the file takes at a time, written into every shape; None: any
            number, or that of a model whose batch is fixed.
        runtime: "litert", or "micro" for TFLite Micro: a fixed batch (of one image
            unless `batch` says more), `scale_codes`, and a comparison with the
            reference kernels, which round as those of Micro do.
        class_names: one a score, in their order; written as the standard label file.
        scaling: how pixels 0..255 become the student's input: an `InputScaling`, its
            configuration, or its kind ("0..255", "0..1", "-1..1"); written as the
            standard normalization. MediaPipe needs it of files with float inputs.

    Returns:
        An `ExportReport`.

    Raises:
        ExportError: a model that is not quantized or not calibrated, a layer that
            TFLite cannot compute in integers, a path that cannot be written, or a file
            that does not compute the model; `path` is then as it was.
    """
    path = Path(path)
    _check_choices(storage, input_type, output_type, runtime)
    _check_batch(batch)
    _check_metadata(metadata)
    _check_student(student)
    _described(student, output_kinds)
    known = facts(class_names, scaling)
    file = (dict(metadata or {}), scale_codes, batch, runtime, known)
    choices = (input_type, output_type, *file)
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
    if unsnapped := _unsnapped(lowered):
        _warn_unsnapped(unsnapped)
    deviations = mean_deviations(lowered, local)
    layers = layer_reports(lowered, deviations)
    _check_layers(layers, deviations)
    described = _described(student, output_kinds, first[0][1])
    try:
        outputs = compare_outputs(
            student, lowered, described, chain(first, batches), near_steps
        )
    except TaskError as error:
        raise ExportError(str(error)) from error
    if given:
        _check_outputs(outputs, deviations, least_agreement)
    contents = {storage: lowered.content}
    for other in STORAGES_OF[runtime]:
        contents.setdefault(other, _lower(student, other, *choices).content)
    report = ExportReport(
        path=str(path),
        storage=storage,
        input_type=input_type,
        output_type=output_type,
        file_bytes=len(lowered.content),
        data="given" if given else "random",
        layers=tuple(layers),
        storage_bytes={name: len(contents[name]) for name in STORAGES_OF[runtime]},
        latency_ms=measure_latency(
            student, contents, latency_runs if runtime == "litert" else 0
        ),
        runtime=runtime,
        unsnapped_layers=tuple(unsnapped),
        **vars(outputs),
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


def _check_batch(batch: Any) -> None:
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ExportError(
            "batch must be a whole number of images, 1 or more. "
            f"Received: batch={batch!r}. Leave it out for any number."
        )


def _check_choices(
    storage: str, input_type: str, output_type: str, runtime: str
) -> None:
    choices = {
        "runtime": (runtime, tuple(STORAGES_OF)),
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
    if storage not in STORAGES_OF[runtime]:
        raise ExportError(
            f"storage must be {' or '.join(STORAGES_OF[runtime])} with "
            f"runtime={runtime!r}, which cannot compute INT2, and INT4 only with codes "
            f"off by one. Received: storage={storage!r}. Leave it out."
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


def _described(student: Any, output_kinds: Any, labels: Any = None) -> list[Output]:
    try:
        return outputs_of(student, output_kinds, labels)
    except (TaskError, GraphError) as error:
        raise ExportError(str(error)) from error


def _check_outputs(outputs: Outputs, deviations: list[Deviation], least: float) -> None:
    """Refuse a file that decides or computes something else than the Keras model."""
    plain = outputs.outputs and all(o.agreement is None for o in outputs.outputs)
    alike = 1.0 if plain or outputs.agreement is None else outputs.agreement
    if alike + (outputs.ties or 0.0) < least:
        raise ExportError(_disagreement(outputs, deviations, least))
    for output in outputs.outputs:
        if output.near is not None and output.near < least:
            raise ExportError(_distance(output, outputs.images, deviations, least))


def _disagreement(outputs: Outputs, deviations: list[Deviation], least: float) -> str:
    deciding = [o for o in outputs.outputs if o.agreement is not None]
    output = min(deciding, key=lambda o: o.alike)
    return (
        "The file must decide as the Keras model does on "
        f"{least:.0%} of the images. "
        f"Received: agreement={outputs.agreement:.1%} on {outputs.images} images, "
        f"output={output.name!r} ({output.compared}). {_rounding(deviations)}, so the "
        "scores are too close to call: fine-tune longer, give layers more bits, or, if "
        f"the accuracy of both is the same, lower least_agreement.{_reading(output)}"
    )


def _distance(
    output: OutputReport, images: int, deviations: list[Deviation], least: float
) -> str:
    share = output.relative_error
    return (
        f"The numbers of the file must be within {output.near_steps:g} steps of the "
        f"Keras model's in {least:.0%} of all. Received: {output.near:.1%} on {images} "
        f"images, output={output.name!r}, whose step is {output.step:.3g}: mean error "
        f"{output.mean_error:.3g}"
        + (f" ({share:.1%} of the range)" if share is not None else "")
        + f", largest {output.max_error:.3g}. {_rounding(deviations)}, and it adds up: "
        "call snap_biases, fine-tune longer, give layers more bits, or, if the error "
        f"will do, raise near_steps or lower least_agreement.{_reading(output)}"
    )


def _rounding(deviations: list[Deviation]) -> str:
    worst = max(deviations, key=lambda d: d.off)
    return (
        "Given equal inputs every layer is right but for rounding (most of it at "
        f"{worst.name!r}, {worst.off:.2%} of whose codes are a step off)"
    )


def _reading(output: OutputReport) -> str:
    """What to do should the output be something else."""
    if output.known_from == "stated":
        return ""
    source = "" if output.known_from == "assumed" else f" by its {output.known_from}"
    return (
        f" The output was taken for {output.kind}{source}; should it be something "
        "else, say so with output_kinds."
    )


def _unsnapped(lowered: Lowered) -> list[str]:
    """Layers with biases, if those of most of them were never rounded."""
    biased = {k.name for k in lowered.kernels if k.folded.bias.any()}
    loose = [k.name for k in lowered.kernels if k.folded.loose > LOOSE_UNITS]
    loose = list(dict.fromkeys(loose))
    return loose if 2 * len(loose) > len(biased) else []


def _warn_unsnapped(layers: list[str]) -> None:
    shown = ", ".join(map(repr, layers[:5])) + (", ..." if len(layers) > 5 else "")
    warnings.warn(
        f"The biases of {len(layers)} layer(s) were never rounded to what integer "
        f"kernels add: {shown}. The file rounds them, the Keras model does not, and "
        "some codes come out a step apart. Call gmpq_tf.snap_biases(student, images) "
        "after fine-tuning, before saving and exporting.",
        UserWarning,
        stacklevel=3,
    )


def _write(path: Path, content: bytes, report: ExportReport) -> None:
    try:
        with replace_files(path, path.with_name(REPORT_NAME)) as temporaries:
            temporaries[0].write_bytes(content)
            temporaries[1].write_text(json_text(report.to_json()), encoding="utf-8")
    except OSError as error:
        raise ExportError(
            "The path must be writable. "
            f"Received: path={str(path)!r} ({error}). Choose another folder."
        ) from error
