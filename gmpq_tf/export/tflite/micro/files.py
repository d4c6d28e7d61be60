"""The files that are written beside a file for TFLite Micro, and their report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.lowering import Lowered
from gmpq_tf.export.tflite.memory_cost import planned_bytes
from gmpq_tf.export.tflite.micro.arena import Arena, measure_arena
from gmpq_tf.export.tflite.micro.int4 import Int4, int4_kernels
from gmpq_tf.export.tflite.micro.source import (
    MARK,
    Source,
    TensorFacts,
    array,
    ends,
    header,
    resolver_methods,
)

SUFFIXES = (".cc", ".h")


@dataclass(frozen=True)
class MicroReport:
    """What a file needs in TFLite Micro.

    Args:
        sources: names of the C source and its header.
        activation_bytes: bytes that its planner needs for computed tensors.
        arena: the whole arena as measured; None: tflite-micro is not installed.
        operators: methods of `MicroMutableOpResolver` to call.
        inputs: inputs of the file.
        outputs: outputs of the file.
        int4: which layers CMSIS-NN can compute from packed INT4, one row per layer.
    """

    sources: tuple[str, str]
    activation_bytes: int
    arena: Arena | None
    operators: tuple[str, ...]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    int4: tuple[Int4, ...]

    def __str__(self) -> str:
        if self.arena is None:
            arena = (
                f"{self.activation_bytes} bytes of arena for activations; the whole "
                "arena was not measured: pip install tflite-micro"
            )
        else:
            arena = f"{self.arena.total} bytes of arena"
        packed = [row for row in self.int4 if row.function]
        saved = sum(row.bytes - row.packed_bytes for row in packed)
        return (
            f"{' and '.join(self.sources)}: {arena}. CMSIS-NN could compute "
            f"{len(packed)} of {len(self.int4)} layers from INT4, in {saved} bytes less"
        )


def check_sources(path: Path) -> None:
    """Refuses to overwrite C files that this package has not written.

    Args:
        path: path of the `.tflite` file.

    Raises:
        ExportError: there is such a file.
    """
    for suffix in SUFFIXES:
        beside = path.with_suffix(suffix)
        if not beside.is_file():
            continue
        with beside.open(encoding="utf-8", errors="replace") as file:
            if MARK not in file.read(1000):
                raise ExportError(
                    "runtime='micro' writes a C source beside the file. Received: "
                    f"path={str(path)!r}, where {beside.name} is somebody else's. "
                    "Choose another name."
                )


def micro_files(path: Path, lowered: Lowered) -> tuple[dict[Path, bytes], MicroReport]:
    """The C source of a file, its header, and the report.

    Args:
        path: path of the `.tflite` file.
        lowered: its content.

    Returns:
        Path -> content of the C files, and the report.

    Raises:
        ExportError: TFLite Micro lacks an operator, or does not start on the file.
    """
    content = lowered.content
    source = Source(
        path.name,
        content,
        planned_bytes(content),
        measure_arena(content),
        int4_kernels(lowered),
    )
    sources = [path.with_suffix(suffix) for suffix in SUFFIXES]
    texts = (array(source), header(source))
    files = {p: text.encode() for p, text in zip(sources, texts, strict=True)}
    inputs, outputs = ends(content)
    report = MicroReport(
        (sources[0].name, sources[1].name),
        source.activation_bytes,
        source.arena,
        resolver_methods(content),
        inputs,
        outputs,
        source.int4,
    )
    return files, report
