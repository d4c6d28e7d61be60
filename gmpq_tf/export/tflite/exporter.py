"""Exports a quantized Keras model to a TFLite file that computes the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.data import InputScaling
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.float_model import float_tflite
from gmpq_tf.export.tflite.acceptance import (
    check_layers,
    check_outputs,
    check_twin,
    check_twin_outputs,
    unsnapped,
    warn_apart,
    warn_unsnapped,
)
from gmpq_tf.export.tflite.arguments import (
    STORAGES,
    STORAGES_OF,
    TYPES,
    check_batch,
    check_choices,
    check_effort,
    check_metadata,
    check_path,
    check_student,
    verification,
)
from gmpq_tf.export.tflite.detection_metadata import warn_unread
from gmpq_tf.export.tflite.lowering import Lowered, lower, reads_pixels
from gmpq_tf.export.tflite.metadata import facts
from gmpq_tf.export.tflite.micro.files import check_sources, micro_files
from gmpq_tf.export.tflite.objects import compare_postprocess
from gmpq_tf.export.tflite.outputs import NEAR_STEPS, Outputs, compare_outputs
from gmpq_tf.export.tflite.postprocess import (
    PostProcess,
    check_postprocess,
    detector_head,
)
from gmpq_tf.export.tflite.region_files import export_regions
from gmpq_tf.export.tflite.region_parts import region_parts
from gmpq_tf.export.tflite.report import (
    REPORT_NAME,
    ExportReport,
    float_reports,
    write_export,
)
from gmpq_tf.export.tflite.runtime import TFLiteModel, latencies
from gmpq_tf.export.tflite.twin.compare import TwinCheck, compare_twin
from gmpq_tf.export.tflite.twin.run import FileTwin
from gmpq_tf.export.tflite.verify import (
    LOCAL_IMAGES,
    Deviation,
    LayerReport,
    layer_reports,
    mean_deviations,
    random_inputs,
)
from gmpq_tf.graph import GraphError
from gmpq_tf.inputs import InputError
from gmpq_tf.task import Output, OutputKind, TaskError, outputs_of
from gmpq_tf.transform.batches import BATCH_SIZE, Batch, ModelInputs, batches_of

__all__ = [
    "LATENCY_RUNS",
    "LEAST_AGREEMENT",
    "REPORT_NAME",
    "STORAGES",
    "ExportReport",
    "export_tflite",
    "measure_latency",
]

LEAST_AGREEMENT = 0.95
LATENCY_RUNS = 20
SEED = 0


def export_tflite(
    student: keras.Model,
    path: str | os.PathLike[str],
    storage: str = "fast",
    input_type: str | None = None,
    output_type: str = "float32",
    verify_data: Any = None,
    labels: Any = None,
    metadata: Mapping[str, Any] | None = None,
    scale_codes: bool = False,
    latency_runs: int = LATENCY_RUNS,
    least_agreement: float | None = None,
    output_kinds: str | OutputKind | Mapping | Sequence | None = None,
    near_steps: float = NEAR_STEPS,
    batch: int | None = None,
    runtime: str = "litert",
    class_names: Sequence[str] | None = None,
    scaling: InputScaling | Mapping[str, Any] | str | None = None,
    float_layers: str = "refuse",
    verify: str | None = None,
    postprocess: PostProcess | Mapping[str, Any] | bool | None = None,
) -> ExportReport:
    """Writes a quantized model as TFLite, and checks the file against the model.

    The file is written only if its kernel codes are the trained ones, every layer
    computes the same as the Keras layer when both get the file's inputs, and every
    integer of every tensor, and the outputs on all images, are those of exact
    arithmetic (`integer_twin`). `export_report.json` is written beside it. A two-stage
    detector becomes two files, the second beside the first as `NAME_head.tflite`;
    `RegionDetector` runs both.

    Args:
        student: from `gmpq_tf.quantize_model`, calibrated and fine-tuned.
        path: the `.tflite` file to create or to replace.
        storage: "fast": INT8 kernels; "packed": INT4 for kernels of 4 bits or fewer,
            two codes a byte; "smallest": also INT2 for kernels of 2 bits, four codes a
            byte. Convolutions in INT4 and INT2 are written as dense layers over
            patches, which is exact but slower. Depthwise and grouped ones stay INT8,
            also those with fewer than 32 filters or too small to gain from it, and
            dense layers whose rows do not fill whole bytes.
        input_type: "float32", or "int8" or "uint8" for codes of the input's grid. None:
            "float32"; for a detector "uint8" if `scaling` makes the codes the pixels.
        output_type: "float32", "int8" or "uint8"; with "float32" a final softmax is
            computed in float.
        verify_data: inputs as `student` takes them: an array [images, ...]; for several
            inputs a dict of arrays by name, or a list in the order of
            `student.inputs`; or an iterable (`tf.data`, `PyDataset`) of batches of
            inputs or of (inputs, labels). None: 64 random ones in the calibrated range.
        labels: if `verify_data` holds arrays: class numbers, one-hot rows, zeros and
            ones, or numbers, as the outputs are; for several outputs a list, tuple or
            dict. Labels of detectors are ignored.
        metadata: stored in the file as JSON, e.g. input scaling and class names;
            `read_metadata` returns it.
        scale_codes: store kernel codes times the largest power of two that fits, and
            steps divided by it, so that weights stay the same. For runtimes without
            XNNPACK, whose kernels round twice and are inaccurate where accumulators are
            small, as at 2 and 3 bits.
        latency_runs: timed runs of every storage and of the float model for the
            report; 0: not measured.
        least_agreement: nothing is written if Keras model and file agree on a smaller
            share of `verify_data`, 0 to 1 (equal decisions or ties; near numbers).
            Keras rounds sums in float, and where one is close to a half it may differ
            from the file; in networks of fifty layers such differences spread, and with
            a thousand classes a few per cent of close decisions change, both ways.
            None: below 95 % a warning is given, or with `verify="agreement"` an error.
        output_kinds: what the outputs mean: "classes" (the largest score decides),
            "binary" (each number is a probability, decided at 0.5), "binary_logit"
            (decided at 0) or "numbers"; for all outputs, or a dict by name, or a list.
            None: it is derived from graph, loss and labels; see
            `gmpq_tf.task.outputs_of`.
        near_steps: numbers are near if they differ by at most this many steps of their
            grid.
        batch: fixed batch size of the file; None: any, or the fixed one of the model.
        runtime: "litert", or "micro" for TFLite Micro: a fixed batch (1 unless `batch`
            is given), `scale_codes`, and a comparison with the reference kernels, which
            round like those of Micro. The file is also written as C source, `.cc` and
            `.h`, with the size of the arena that it needs.
        class_names: names of the scores, in their order; written as the standard label
            file.
        scaling: how pixels 0..255 become the student's input: an `InputScaling`, its
            configuration, or its kind ("0..255", "0..1", "-1..1"); written as the
            standard normalization, which MediaPipe needs for files with float inputs.
        float_layers: "refuse" layers that have no integer counterpart, such as gelu or
            LayerNormalization, or "allow" them to be computed in float: each between
            DEQUANTIZE and QUANTIZE, as TensorFlow's converter writes it.
        verify: "exact": as above, without tolerance; "agreement": without the
            comparison with exact arithmetic, judged by `least_agreement`, for
            processors whose kernels round otherwise. None: "exact"; for Micro, whose
            kernels round twice, "agreement".
        postprocess: for a detector: return detections instead of its outputs, by
            `TFLite_Detection_PostProcess`; True, or a `PostProcess` with options. The
            file takes one image. None: return the outputs.

    Returns:
        An `ExportReport`.

    Raises:
        ExportError: the model is not quantized or not calibrated, TFLite cannot compute
            a layer in integers, the path cannot be written, or the file does not
            compute the model. `path` is left unchanged.
    """
    path = Path(path)
    check_path(path)
    check_effort(least_agreement, latency_runs)
    check_choices(storage, input_type or TYPES[0], output_type, runtime, float_layers)
    verify = verification(runtime, verify)
    exact = verify == "exact"
    check_batch(batch)
    check_metadata(metadata)
    check_student(student)
    parts = region_parts(student)
    if parts is not None:
        options = {
            "storage": storage,
            "input_type": input_type,
            "output_type": output_type,
            "verify_data": verify_data,
            "labels": labels,
            "metadata": metadata,
            "scale_codes": scale_codes,
            "latency_runs": latency_runs,
            "least_agreement": least_agreement,
            "output_kinds": output_kinds,
            "near_steps": near_steps,
            "batch": batch,
            "runtime": runtime,
            "class_names": class_names,
            "scaling": scaling,
            "float_layers": float_layers,
            "verify": verify,
            "postprocess": postprocess,
        }
        return export_regions(export_tflite, parts, path, options)
    if runtime == "micro":
        check_sources(path)
    _described(student, output_kinds)
    known = facts(class_names, scaling)
    head = detector_head(student, known.class_names)
    tail = check_postprocess(
        postprocess, head, len(student.outputs), output_type, batch, runtime
    )
    if head is not None and tail is None:
        warn_unread(head, output_type)
    batch = 1 if tail is not None else batch
    if input_type is None:
        pixels = head is not None and reads_pixels(student, known)
        input_type = "uint8" if pixels else "float32"
    file = (dict(metadata or {}), scale_codes, batch, runtime, known)
    choices = (input_type, output_type, *file, float_layers, head)
    lowered = _lower(student, storage, *choices)
    given = verify_data is not None
    if not given:
        verify_data = random_inputs(student, lowered.input_grids, SEED)
    batches = _batches(lowered, verify_data, labels)
    if head is not None:  # labels of a detector do not fit its offsets and scores
        batches = ((arrays, None) for arrays, _ in batches)
    first = list(islice(batches, _local_batches(lowered)))
    if not first:
        raise ExportError(
            "Verification needs at least one input. "
            "Received: verify_data without images. Pass some, or None for random ones."
        )
    local = [[a[:LOCAL_IMAGES] for a in arrays] for arrays, _ in first]
    if loose := unsnapped(lowered):
        warn_unsnapped(loose)
    layers, deviations, twin = _layers_checked(lowered, local, exact)
    described = _described(student, output_kinds, first[0][1])
    outputs = _outputs_compared(
        student, lowered, described, chain(first, batches), near_steps, exact
    )
    if given:
        warns = exact and least_agreement is None
        judge = warn_apart if warns else check_outputs
        least = LEAST_AGREEMENT if least_agreement is None else least_agreement
        judge(outputs, deviations, least)
    beside, micro = micro_files(path, lowered) if runtime == "micro" else ({}, None)
    contents = {} if tail is not None else {storage: lowered.content}
    for other in STORAGES_OF[runtime]:
        if other not in contents:
            contents[other] = _lower(student, other, *choices, tail).content
    content, found = contents[storage], None
    if head is not None and tail is not None:
        found = compare_postprocess(content, lowered.content, head, tail, local)
    latency_runs = latency_runs if runtime == "litert" else 0
    report = ExportReport(
        path=str(path),
        storage=storage,
        input_type=input_type,
        output_type=output_type,
        file_bytes=len(content),
        data="given" if given else "random",
        layers=tuple(layers),
        storage_bytes={name: len(contents[name]) for name in STORAGES_OF[runtime]},
        latency_ms=measure_latency(student, contents, latency_runs),
        float_parts=float_reports(lowered, latency_runs),
        runtime=runtime,
        verify=verify,
        twin=twin,
        unsnapped_layers=tuple(loose),
        micro=micro,
        postprocess=found,
        **vars(outputs),
    )
    write_export(path, content, report, beside)
    return report


def _layers_checked(
    lowered: Lowered, batches: Sequence[Sequence[np.ndarray]], exact: bool
) -> tuple[list[LayerReport], list[Deviation], TwinCheck | None]:
    """Compares each layer with Keras and each integer with the twin; refuses errors.

    Args:
        lowered: the file and its graph.
        batches: inputs, each with one array [B, ...] for every input of the model.
        exact: whether the file is compared with exact arithmetic.

    Returns:
        Reports of the layers, their deviations from Keras, and the comparison with the
        twin; None: not compared.
    """
    deviations = mean_deviations(lowered, batches)
    layers = layer_reports(lowered, deviations)
    check_layers(layers, deviations, exact)
    twin = compare_twin(lowered.content, batches[0]) if exact else None
    if twin is not None:
        check_twin(twin)
    return layers, deviations, twin


def _outputs_compared(
    student: keras.Model,
    lowered: Lowered,
    described: Sequence[Output],
    batches: Iterator[Batch],
    near_steps: float,
    exact: bool,
) -> Outputs:
    """Compares outputs on all images; refuses a file that differs from its twin."""
    twin = _file_twin(lowered.content) if exact else None
    try:
        outputs = compare_outputs(
            student, lowered, described, batches, near_steps, twin
        )
    except TaskError as error:
        raise ExportError(str(error)) from error
    if exact:
        check_twin_outputs(outputs)
    return outputs


def _batches(lowered: Lowered, data: Any, labels: Any) -> Iterator[Batch]:
    inputs = ModelInputs(lowered.graph)
    try:
        for arrays, own in batches_of(inputs, data, labels, largest=BATCH_SIZE):
            inputs.check_finite(arrays)
            yield arrays, own
    except InputError as error:
        raise ExportError(str(error)) from error


def _local_batches(lowered: Lowered) -> int:
    """Number of batches with `LOCAL_IMAGES` in all; 1 if the batch size is open."""
    size = ModelInputs(lowered.graph).batch_size
    return 1 if size is None else -(-LOCAL_IMAGES // size)


def _file_twin(content: bytes) -> FileTwin | None:
    """The twin of a whole file; None if the file has layers computed in float."""
    with contextlib.suppress(ExportError):  # integer operators were checked before
        return FileTwin(content)
    return None


def measure_latency(
    student: keras.Model, contents: Mapping[str, bytes], runs: int
) -> dict[str, float]:
    """Median milliseconds of one image in each file and in the float model.

    Args:
        student: from `gmpq_tf.quantize_model`.
        contents: storage -> the file's bytes.
        runs: timed runs of each; 0: nothing is measured.

    Returns:
        Storage, and "float", -> milliseconds; files that do not run are missing.
    """
    if not runs:
        return {}
    contents, usable = dict(contents), {}
    # An older runtime may lack INT2, and the converter may refuse the float model;
    # neither concerns the file that is being written.
    with contextlib.suppress(ExportError):
        contents["float"] = float_tflite(student)
    for name, content in contents.items():
        with contextlib.suppress(ExportError):
            TFLiteModel(content)
            usable[name] = content
    return {n: 1000 * s for n, s in latencies(usable, runs).items()}


def _lower(student: Any, *choices: Any) -> Lowered:
    try:
        return lower(student, *choices)
    except GraphError as error:
        raise ExportError(str(error)) from error


def _described(student: Any, output_kinds: Any, labels: Any = None) -> list[Output]:
    try:
        return outputs_of(student, output_kinds, labels)
    except (TaskError, GraphError) as error:
        raise ExportError(str(error)) from error
