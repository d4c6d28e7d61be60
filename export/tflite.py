"""Writes the .tflite file of a fine-tuned model and compares it with the Keras model.

Reads <workdir>/<name>/model.keras, as `python -m train.finetune` leaves it, and writes
model.tflite and export_report.json beside it. Every stored weight code is compared with
the trained one, and the file is run on held-out images; a file that deviates is not
kept.

  python -m export.tflite --workdir=runs/digits

In Python, `export_tflite` does the same for a model in memory.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.files import write_json
from gmpq_tf.models import load_model
from gmpq_tf.policy import BitwidthPolicy

from .app import run_main
from .errors import ExportError
from .exporter import ExportReport, export_tflite
from .flags import from_flags
from .flatbuffer import read_metadata
from .stage import (
    StageError,
    WorkdirConfig,
    fingerprint,
    read_json,
    recorded_data,
    set_threads,
)
from .verify import LayerReport

__all__ = [
    "ExportConfig",
    "ExportError",
    "ExportReport",
    "LayerReport",
    "export",
    "export_tflite",
    "main",
    "read_metadata",
    "run",
]

TensorKind = Literal["float32", "int8", "uint8"]


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What file is written.

    Args:
        name: Folder in the workdir that holds the fine-tuned model.
        storage: How kernels are stored: fast (one byte a weight) or packed (half a byte
            where 4 bits or fewer suffice and the runtime supports it).
        input_type: Type of the input tensor.
        output_type: Type of the output tensor.
        verify_images: Images, held out if there are any, on which the file is compared
            with the Keras model; 0 uses random inputs.
    """

    name: str = "finetune"
    storage: Literal["fast", "packed"] = "fast"
    input_type: TensorKind = "float32"
    output_type: TensorKind = "float32"
    verify_images: int = 512

    def __post_init__(self) -> None:
        if self.verify_images < 0:
            raise ValueError(
                "verify_images must be 0 or more. "
                f"Received: verify_images={self.verify_images}."
            )


def export(config: ExportConfig, data: DataConfig, run: WorkdirConfig) -> Path:
    """Writes the .tflite file of a fine-tuned model, unless it is up to date.

    Args:
        config: which model, what file.
        data: the images, scaled as the model was trained with.
        run: where.

    Returns:
        The path of the file; export_report.json lies beside it.

    Raises:
        ValueError: there is no model, or the file does not compute what it does.
    """
    folder = Path(run.workdir) / config.name
    source, path = folder / "model.keras", folder / "model.tflite"
    _check_source(source)
    identity = _identity(config, data, source)
    if not run.overwrite and _is_current(folder, path, identity):
        print(f"{path} is up to date.")
        return path
    dataset = load_dataset(data)
    report = export_tflite(
        load_model(source),
        path,
        storage=config.storage,
        input_type=config.input_type,
        output_type=config.output_type,
        verify_data=verification_images(dataset, config.verify_images),
        metadata=metadata(folder, dataset),
    )
    write_json(folder / "export.json", {**identity, "tflite": fingerprint(path)})
    print(f"{report.file_bytes} bytes, agreement {100 * report.agreement:.2f} %")
    return path


def verification_images(dataset: Dataset, count: int) -> Any:
    """Returns batches of held-out images and labels, or None for random inputs.

    Args:
        dataset: the images.
        count: how many; 0 for none.

    Returns:
        A `tf.data.Dataset` of (images, labels), or None.
    """
    if not count:
        return None
    held_out = dataset.sizes["validation"] > 0
    batches = dataset.validation() if held_out else dataset.calibration(count)
    size = min(count, dataset.config.batch_size)
    return batches.unbatch().take(count).batch(size)


def metadata(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Returns what the file says of itself: input scaling, classes, policy.

    Args:
        folder: of the fine-tuned model.
        dataset: the images it was trained on.

    Returns:
        Plain JSON values.
    """
    policy = BitwidthPolicy.load(folder / "policy.json")
    bits = {name: [b.weight_bits, b.activation_bits] for name, b in policy.items()}
    return {
        "input_scaling": dataset.config.input_scaling().to_config(),
        "class_names": list(dataset.class_names),
        "policy": {"model": policy.model, "layers": bits},
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


def _is_current(folder: Path, path: Path, identity: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    before = read_json(folder / "export.json")
    return before == {**identity, "tflite": fingerprint(path)}


def main(argv: list[str]) -> None:
    """Runs the command; flags must have been parsed.

    Args:
        argv: not used.
    """
    run, config = from_flags(WorkdirConfig), from_flags(ExportConfig)
    set_threads(run.threads)
    recorded = recorded_data(run.workdir, config.name)
    path = export(config, from_flags(DataConfig, inherited=recorded), run)
    print(f"TFLite model: {path}")


def run() -> None:
    """Entry point of `gmpq-export`."""
    run_main(main, __doc__, ExportConfig, DataConfig, WorkdirConfig)


if __name__ == "__main__":
    run()
