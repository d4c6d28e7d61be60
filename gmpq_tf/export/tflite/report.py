"""The report of an export, and how it is written beside the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.lowering import Lowered
from gmpq_tf.export.tflite.micro.files import MicroReport
from gmpq_tf.export.tflite.objects import PostReport
from gmpq_tf.export.tflite.outputs import Outputs
from gmpq_tf.export.tflite.runtime import latencies
from gmpq_tf.export.tflite.twin.compare import TwinCheck
from gmpq_tf.export.tflite.verify import LayerReport
from gmpq_tf.files import json_text, replace_files

REPORT_NAME = "export_report.json"


@dataclass(frozen=True)
class FloatReport:
    """A layer that a file computes in float.

    Args:
        name: name of the layer.
        kind: class of the layer.
        operators: names of its TFLite operators, in order, without conversions.
        constant_bytes: bytes of its weights, in float.
        time_share: share of the time of an image in the file, without conversions, 0 to
            1; None: not measured.
    """

    name: str
    kind: str
    operators: tuple[str, ...]
    constant_bytes: int
    time_share: float | None

    def __str__(self) -> str:
        share = (
            "" if self.time_share is None else f", {self.time_share:.0%} of the time"
        )
        return (
            f"{self.name} ({self.kind}) in float: {' '.join(self.operators)}, "
            f"{self.constant_bytes} bytes of constants{share}"
        )


def float_reports(lowered: Lowered, runs: int) -> tuple[FloatReport, ...]:
    """Reports of the layers that a file computes in float, with their share of time.

    Args:
        lowered: the file.
        runs: timed runs; 0: no time is measured.
    """
    parts = lowered.float_parts
    seconds: dict[str, float] = {}
    if runs and parts:
        contents = {str(number): part.content for number, part in enumerate(parts)}
        seconds = latencies({"": lowered.content, **contents}, runs)
    return tuple(
        FloatReport(
            part.name,
            part.kind,
            part.operators,
            part.constant_bytes,
            seconds[str(number)] / seconds[""] if seconds else None,
        )
        for number, part in enumerate(parts)
    )


@dataclass(frozen=True)
class ExportReport(Outputs):
    """What was written, and how it compares with the Keras model: see `Outputs`.

    Args:
        path: the file.
        storage: "fast", "packed" or "smallest".
        input_type: type of the file's inputs.
        output_type: type of its outputs.
        file_bytes: size of the file.
        data: "given", or "random" if the caller gave no images.
        unsnapped_layers: layers whose biases were not rounded by `snap_biases`.
        layers: one report for each layer.
        storage_bytes: size of the file in each storage, in bytes.
        latency_ms: median milliseconds of one image in each storage and in the float
            model ("float"), one thread, measured in turns; {} if not measured. Files
            that the runtime or TensorFlow's converter refuses are missing.
        runtime: "litert" or "micro", whose kernels were compared.
        micro: what TFLite Micro needs for the file; None for another runtime.
        float_parts: layers that the file computes in float.
        verify: "exact": no integer and no output of the file may differ from its
            integer twin; "agreement": only decisions and numbers were judged.
        twin: the comparison of integers with the twin's; None: not compared.
        postprocess: the comparison of the detections that the file returns instead of
            its outputs; None: it returns its outputs.
    """

    path: str
    storage: str
    input_type: str
    output_type: str
    file_bytes: int
    data: str
    unsnapped_layers: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    storage_bytes: dict[str, int]
    latency_ms: dict[str, float]
    runtime: str = "litert"
    micro: MicroReport | None = None
    float_parts: tuple[FloatReport, ...] = ()
    verify: str = "agreement"
    twin: TwinCheck | None = None
    postprocess: PostReport | None = None

    def to_json(self) -> dict[str, Any]:
        """The contents of `export_report.json`, plain JSON values."""
        return {"format": 1, **dataclasses.asdict(self)}


def write_export(
    path: Path,
    content: bytes,
    report: ExportReport,
    beside: Mapping[Path, bytes] | None = None,
) -> None:
    """Writes the file, its report beside it, and other files: all or none.

    Raises:
        ExportError: one of them cannot be written.
    """
    text = json_text(report.to_json()).encode()
    contents = {path: content, path.with_name(REPORT_NAME): text, **(beside or {})}
    try:
        with replace_files(*contents) as temporaries:
            for temporary, data in zip(temporaries, contents.values(), strict=True):
                temporary.write_bytes(data)
    except OSError as error:
        raise ExportError(
            "The path must be writable. "
            f"Received: path={str(path)!r} ({error}). Choose another folder."
        ) from error
