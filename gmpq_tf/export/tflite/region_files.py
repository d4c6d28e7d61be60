"""Writes a two-stage detector as two files: images to regions, regions to objects."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.lowering import reads_pixels
from gmpq_tf.export.tflite.metadata import facts
from gmpq_tf.export.tflite.outputs import summary
from gmpq_tf.export.tflite.region_parts import (
    BOXES,
    FEATURES,
    SCORES,
    RegionParts,
)
from gmpq_tf.export.tflite.report import ExportReport, write_export
from gmpq_tf.export.tflite.twin.compare import TwinCheck
from gmpq_tf.graph import read_graph
from gmpq_tf.inputs import InputError
from gmpq_tf.transform.batches import BATCH_SIZE, ModelInputs, batches_of

# The entry of the first file's metadata that says how both are joined.
ENTRY = "regions"
FIRST_KINDS = {FEATURES: "numbers", SCORES: "binary_logit", BOXES: "numbers"}
HEAD_KINDS = {"scores": "classes", "boxes": "numbers"}
# Options that the two files have of their own, or cannot have.
_ALONE = ("labels", "postprocess", "output_kinds", "float_layers")
# What they may be where there are two files, the default first.
_OF_TWO: dict[str, tuple[Any, ...]] = {
    "postprocess": (None, False),
    "runtime": ("litert",),
    "float_layers": ("refuse",),
    "output_kinds": (None,),
    "output_type": ("float32",),
}


def head_path(path: str | Path) -> Path:
    """Path of the second file of a detector: `model_head.tflite` for `model.tflite`.

    Args:
        path: path of the first file.
    """
    path = Path(path)
    return path.with_name(f"{path.stem}_head{path.suffix}")


def export_regions(
    export: Callable[..., ExportReport],
    parts: RegionParts,
    path: Path,
    options: Mapping[str, Any],
) -> ExportReport:
    """Writes both files of a two-stage detector, and one report.

    The head is verified on the features of regions that the Keras model computes.

    Args:
        export: `export_tflite`, which is called for each part.
        parts: the parts of the detector.
        path: the first file; `head_path` tells the second.
        options: arguments of `export_tflite`, by name.

    Returns:
        One report of both files: with the layers and outputs of both, and the sums of
        their sizes and of the integers that were compared.

    Raises:
        ExportError: as for `export_tflite`, or an option that only a single file can
            have.
    """
    check_options(options)
    options = {name: each for name, each in options.items() if name not in _ALONE}
    data = _repeatable(options.pop("verify_data"))
    batch, names = options.pop("batch"), options.pop("class_names")
    kind, scaling = options.pop("input_type"), options.pop("scaling")
    metadata = dict(options.pop("metadata") or {})
    if names:
        metadata.setdefault("class_names", list(names))
    regions = parts.align.regions
    of_head = {
        "verify_data": None if data is None else _aligned(parts.aligned, data),
        "metadata": metadata,
        "batch": None if batch is None else batch * regions,
        "input_type": "int8",
        "output_kinds": HEAD_KINDS,
    }
    head, second = _exported(export, parts.head, {**options, **of_head})
    of_first = {
        "verify_data": data,
        "metadata": {**metadata, ENTRY: _joining(parts, path, second)},
        "batch": batch,
        "input_type": kind or _input_type(parts.first, scaling),
        "output_type": "int8",
        "output_kinds": FIRST_KINDS,
        "scaling": scaling,
    }
    first, content = _exported(export, parts.first, {**options, **of_first})
    report = _both(first, head, path, regions)
    write_export(path, content, report, {head_path(path): second})
    return report


def _exported(
    export: Callable[..., ExportReport], part: keras.Model, options: Mapping[str, Any]
) -> tuple[ExportReport, bytes]:
    """Exports a part to a temporary file; returns its report and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.tflite"
        return export(part, path, **options), path.read_bytes()


def _joining(parts: RegionParts, path: Path, head: bytes) -> dict[str, Any]:
    """Metadata of the first file on how the two are joined, as plain JSON values."""
    return {
        "search": parts.proposal.search.to_config(),
        "size": parts.align.size,
        "samples": parts.align.samples,
        "head": head_path(path).name,
        "head_sha256": hashlib.sha256(head).hexdigest(),
    }


def _input_type(first: keras.Model, scaling: Any) -> str:
    """Default type of the input: "uint8" if its codes are pixels, else "float32"."""
    return "uint8" if reads_pixels(first, facts(None, scaling)) else "float32"


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses options that only a single file can have.

    Args:
        options: some of the arguments of `export_tflite`, by name.

    Raises:
        ExportError: one is given; the message names it.
    """
    wrong = (n for n, own in _OF_TWO.items() if options.get(n, own[0]) not in own)
    if name := next(wrong, None):
        raise ExportError(
            "A two-stage detector is written as two files, whose objects "
            f"RegionDetector finds. Received: {name}={options[name]!r}. Leave {name} "
            "out."
        )


def _repeatable(data: Any) -> Any:
    """Turns an iterator into a list, because each part reads the images once."""
    once = iter(data) is data if hasattr(data, "__iter__") else False
    return list(data) if once else data


def _aligned(aligned: keras.Model, data: Any) -> Iterator[np.ndarray]:
    """Yields the inputs of the head for each image, [regions, ...]."""
    inputs = ModelInputs(read_graph(aligned))
    try:
        for arrays, _ in batches_of(inputs, data, None, largest=BATCH_SIZE):
            for image in range(len(arrays[0])):
                yield np.asarray(aligned.predict_on_batch(arrays[0][image : image + 1]))
    except InputError as error:
        raise ExportError(str(error)) from error


def _both(
    first: ExportReport, head: ExportReport, path: Path, regions: int
) -> ExportReport:
    """Joins the reports of two files; the head's time is counted for all regions."""
    outputs = summary(first.images, [*first.outputs, *head.outputs])
    sizes = {
        n: first.storage_bytes[n] + head.storage_bytes[n] for n in head.storage_bytes
    }
    times = {
        n: first.latency_ms[n] + regions * head.latency_ms[n]
        for n in first.latency_ms
        if n in head.latency_ms
    }
    return dataclasses.replace(
        first,
        path=str(path),
        output_type=head.output_type,
        file_bytes=first.file_bytes + head.file_bytes,
        unsnapped_layers=(*first.unsnapped_layers, *head.unsnapped_layers),
        layers=(*first.layers, *head.layers),
        storage_bytes=sizes,
        latency_ms=times,
        twin=_added(first.twin, head.twin),
        **vars(outputs),
    )


def _added(first: TwinCheck | None, head: TwinCheck | None) -> TwinCheck | None:
    if first is None or head is None:
        return None
    return TwinCheck(
        first.tensors + head.tensors,
        first.codes + head.codes,
        first.off + head.off,
        (*first.names, *head.names),
        max(first.largest, head.largest),
        (*first.unknown, *head.unknown),
    )
