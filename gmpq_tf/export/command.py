"""Writes the .tflite file of a fine-tuned model and compares it with the Keras model.

Reads <workdir>/<name>/model.keras, as `python -m train.finetune` leaves it, and writes
model.tflite and export_report.json beside it. Every stored weight code is compared with
the trained one, and the file is run on held-out images; a file that deviates is not
kept. With --format=tfmot it writes model_tfmot.h5 for TFMOT, with
--format=litert_recipe model_float.tflite and recipe.json for the LiteRT quantizer.

  python -m export.tflite --workdir=runs/digits
  python -m export.tflite --workdir=runs/digits --storage=smallest
  python -m export.tflite --workdir=runs/cells --postprocess

In Python, `export_tflite` does the same for a model in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras

from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.export.budgeted import beyond_budget, budgeted_storage
from gmpq_tf.export.data_facts import (
    class_names,
    metadata,
    output_kinds,
    verification_images,
)
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.float_model import float_tflite
from gmpq_tf.export.litert_recipe import recipe, write_recipe
from gmpq_tf.export.tflite.exporter import (
    LATENCY_RUNS,
    REPORT_NAME,
    export_tflite,
)
from gmpq_tf.export.tflite.micro.files import SUFFIXES
from gmpq_tf.export.tflite.outputs import NEAR_STEPS
from gmpq_tf.export.tflite.postprocess import PostProcess
from gmpq_tf.export.tflite.region_files import head_path
from gmpq_tf.export.tfmot import write_tfmot
from gmpq_tf.files import remove_temporaries, replace_files, write_json
from gmpq_tf.models import load_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import POLICY
from gmpq_tf.run.app import run_main
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.records import fingerprint, read_json, recorded_data
from gmpq_tf.run.run_config import WorkdirConfig, set_threads
from gmpq_tf.run.workdir import claim
from gmpq_tf.spelling import suggest
from gmpq_tf.task.kinds import OutputKindName

TensorKind = Literal["float32", "int8", "uint8"]


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Options of the written file.

    Args:
        name: Folder in the workdir that holds the fine-tuned model.
        format: What is written: a tflite file, a model for tfmot (needs the extra
            gmpq-tf[tfmot]), or a litert_recipe.
        storage: How a tflite file stores kernels: fast (one byte a weight), packed
            (half a byte for kernels of 4 bits or fewer) or smallest (also a quarter for
            kernels of 2 bits); none: that of the policy's budget of bytes or
            milliseconds, fast without one.
        scale_codes: Store kernel codes times a power of two, for runtimes whose kernels
            round twice (without XNNPACK).
        batch: Fixed batch size of the file; none for any.
        runtime: The runtime of the file: litert, or micro (TFLite Micro: a fixed batch,
            1 unless --batch is given, scaled codes, and beside the file a C array and a
            header with the size of its arena).
        float_layers: Layers without an integer counterpart: refuse them, or allow them
            to be computed in float.
        latency_runs: Timed runs of each storage and of the float model; 0 for none.
        input_type: Type of the input tensor; none: float32; for a detector uint8 if the
            scaling makes its codes the pixels.
        output_type: Type of the output tensor.
        verify: How the file is judged: exact (every integer must be that of exact
            arithmetic) or agreement (by decisions, for processors whose kernels round
            otherwise); none: exact, for micro agreement.
        least_agreement: No file is written if Keras and the file agree on a smaller
            share of decisions or near numbers; none: below 0.95 a warning is given, or
            with --verify=agreement no file is written.
        output_kind: Meaning of the output: classes (the largest score decides), binary
            (each number is a probability, decided at 0.5), binary_logit (decided at 0)
            or numbers; none: derived from the model and the labels.
        near_steps: Numbers are near if they differ by at most this many steps of their
            grid.
        postprocess: For a detector: the file returns detections instead of its raw
            outputs, by TFLite_Detection_PostProcess, for one image at a time.
        max_detections: With --postprocess: largest number of objects in an image.
        iou_threshold: With --postprocess: boxes that overlap a better one with a larger
            IoU are dropped, above 0 and at most 1.
        score_threshold: With --postprocess: smallest probability of an object, 0 to 1.
        suppression: With --postprocess: per_class compares boxes of the same class;
            fast counts each box only for its best class, and compares all.
        verify_images: Number of images, held out if possible, on which the file is
            compared with the Keras model; 0 uses random inputs.
    """

    name: str = "finetune"
    format: str = "tflite"
    storage: Literal["fast", "packed", "smallest"] | None = None
    scale_codes: bool = False
    batch: int | None = None
    runtime: Literal["litert", "micro"] = "litert"
    float_layers: Literal["refuse", "allow"] = "refuse"
    latency_runs: int = LATENCY_RUNS
    verify: Literal["exact", "agreement"] | None = None
    least_agreement: float | None = None
    output_kind: OutputKindName | None = None
    near_steps: float = NEAR_STEPS
    input_type: TensorKind | None = None
    output_type: TensorKind = "float32"
    postprocess: bool = False
    max_detections: int = PostProcess.max_detections
    iou_threshold: float = PostProcess.iou_threshold
    score_threshold: float = PostProcess.score_threshold
    suppression: Literal["per_class", "fast"] = "per_class"
    verify_images: int = 512

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"format must be one of {', '.join(FORMATS)}. "
                f"Received: format={self.format!r}. {suggest(self.format, FORMATS)}"
            )
        for name in ("verify_images", "latency_runs"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be 0 or more. Received: {name}={getattr(self, name)}."
                )
        if self.batch is not None and self.batch < 1:
            raise ValueError(
                "batch must be 1 image or more, or none for any number. "
                f"Received: batch={self.batch}."
            )
        if not 0 <= (self.least_agreement or 0) <= 1:
            raise ValueError(
                "least_agreement must be 0 to 1. "
                f"Received: least_agreement={self.least_agreement}."
            )
        self.objects()
        if not self.near_steps >= 0:
            raise ValueError(
                f"near_steps must be 0 or more. Received: near_steps={self.near_steps}."
            )

    def objects(self) -> PostProcess | None:
        """Options of the returned detections; None: the file returns raw outputs.

        Raises:
            ExportError: such options are given, and postprocess is not.
        """
        options = PostProcess(
            self.max_detections,
            self.iou_threshold,
            self.score_threshold,
            self.suppression,
        )
        if not self.postprocess and options != PostProcess():
            raise ExportError(
                "max_detections, iou_threshold, score_threshold and suppression say "
                "which objects a file returns. Received: them without postprocess. "
                "Give --postprocess too, or leave them out."
            )
        return options if self.postprocess else None


def export(
    config: ExportConfig,
    data: DataConfig,
    run: WorkdirConfig,
    dataset: Dataset | None = None,
) -> Path:
    """Writes a fine-tuned model in the wanted format, unless the file is up to date.

    Args:
        config: which model, and what file.
        data: the images, scaled as in the model's training.
        run: the workdir.
        dataset: the images, if they have been read already; None: they are read.

    Returns:
        The path of the file; beside a .tflite lies export_report.json.

    Raises:
        ValueError: there is no model, the format cannot express it, or the file does
            not compute the same.
    """
    folder = Path(run.workdir) / config.name
    source, path = folder / "model.keras", folder / FORMATS[config.format].file
    _check_source(source)
    if config.storage is None:
        of_micro = config.runtime == "micro"  # it has only 8-bit kernels
        storage: Any = "fast" if of_micro else budgeted_storage(folder)
        config = dataclasses.replace(config, storage=storage)
    record = folder / f"export_{config.format}.json"
    identity = _identity(config, data, source)
    whole = all(source.exists() for source in _sources(path, config))
    if not run.overwrite and whole and _is_current(record, path, identity):
        print(f"{path} is up to date.")
        return path
    claim(Path(run.workdir) / "config" / f"{config.name}.export.lock", folder)
    for written in (path, *_sources(path, config), folder / REPORT_NAME, record):
        remove_temporaries(written)
    write = FORMATS[config.format].write
    write(load_model(source), path, config, data, dataset)
    write_json(record, {**identity, **_written(path)})
    return path


def write_tflite(
    student: keras.Model,
    path: Path,
    config: ExportConfig,
    data: DataConfig,
    dataset: Dataset | None = None,
) -> None:
    """Writes the .tflite file and its report, and prints a summary."""
    dataset = dataset or load_dataset(data)
    with dataset.naming_damaged_images():
        report = export_tflite(
            student,
            path,
            storage=config.storage or "fast",
            input_type=config.input_type,
            output_type=config.output_type,
            verify_data=verification_images(dataset, config.verify_images, student),
            metadata=metadata(path.parent, dataset),
            scale_codes=config.scale_codes,
            batch=config.batch,
            runtime=config.runtime,
            class_names=class_names(student, dataset),
            scaling=None if dataset.as_stored else dataset.config.input_scaling(),
            latency_runs=config.latency_runs,
            least_agreement=config.least_agreement,
            output_kinds=config.output_kind or output_kinds(student, dataset),
            near_steps=config.near_steps,
            float_layers=config.float_layers,
            verify=config.verify,
            postprocess=config.objects(),
        )
    beyond = beyond_budget(path.parent, report.file_bytes, report.storage)
    print(f"{report.file_bytes} bytes{beyond}")
    if report.twin is not None:
        print(f"  {report.twin.codes} integers compared, {report.twin.off} off")
    for output in report.outputs:
        print(f"  {output}")
    for part in report.float_parts:
        print(f"  {part}")
    if report.postprocess is not None:
        print(f"  {report.postprocess}")
    if report.micro is not None:
        print(f"  {report.micro}")
    for name, milliseconds in report.latency_ms.items():
        print(f"  {name}: {milliseconds:.3f} ms an image")


def write_for_tfmot(
    student: keras.Model,
    path: Path,
    config: ExportConfig,
    data: DataConfig,
    dataset: Dataset | None = None,
) -> None:
    """Writes the tf_keras model that TFMOT users train on."""
    write_tfmot(student, BitwidthPolicy.load(path.parent / POLICY), path)


def write_for_litert(
    student: keras.Model,
    path: Path,
    config: ExportConfig,
    data: DataConfig,
    dataset: Dataset | None = None,
) -> None:
    """Writes the recipe, and the float model to whose tensors it refers."""
    policy = BitwidthPolicy.load(path.parent / POLICY)
    content = float_tflite(student)
    rules = recipe(student, policy, float_file=content)
    with replace_files(path.with_name("model_float.tflite"), path) as temporaries:
        temporaries[0].write_bytes(content)
        write_recipe(temporaries[1], rules)


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that a student can be written in.

    Args:
        file: name of the file, in the folder of the student.
        write: (student, path, `ExportConfig`, `DataConfig`, data set or None) -> writes
            the file; a path in the folder that holds policy.json.
    """

    file: str
    write: Callable[[keras.Model, Path, ExportConfig, DataConfig, Dataset | None], None]


FORMATS = {
    "tflite": Format("model.tflite", write_tflite),
    "tfmot": Format("model_tfmot.h5", write_for_tfmot),
    "litert_recipe": Format("recipe.json", write_for_litert),
}


def _check_source(source: Path) -> None:
    if not source.is_file():
        raise StageError(
            "The fine-tuned model must be there. "
            f"Received: {str(source)!r}, which does not exist. "
            "Run `python -m train.finetune` with this --workdir and --name first."
        )


def _identity(config: ExportConfig, data: DataConfig, source: Path) -> dict[str, Any]:
    scaling = {"scaling": data.scaling, "mean": data.mean, "std": data.std}
    options = dataclasses.asdict(config) | {"dataset": data.dataset, **scaling}
    return {"config": options, "model": fingerprint(source)}


def _sources(path: Path, config: ExportConfig) -> list[Path]:
    """The C files that belong to a file for TFLite Micro."""
    micro = config.format == "tflite" and config.runtime == "micro"
    return [path.with_suffix(suffix) for suffix in SUFFIXES] if micro else []


def _is_current(record: Path, path: Path, identity: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    return read_json(record) == {**identity, **_written(path)}


def _written(path: Path) -> dict[str, str]:
    """Fingerprints of the files that an export wrote, to recognize them."""
    head = head_path(path)
    two = {"head": fingerprint(head)} if head.exists() else {}
    return {"file": fingerprint(path), **two}


def main(argv: list[str]) -> None:
    """Runs the command; flags must have been parsed.

    Args:
        argv: not used.
    """
    run, config = from_flags(WorkdirConfig), from_flags(ExportConfig)
    set_threads(run.threads)
    recorded = recorded_data(run.workdir, config.name)
    path = export(config, from_flags(DataConfig, inherited=recorded), run)
    print(f"Exported: {path}")


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-export`."""
    run_main(main, __doc__, ExportConfig, DataConfig, WorkdirConfig)


if __name__ == "__main__":
    run()
