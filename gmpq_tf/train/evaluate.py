"""Measures the models of a workdir: accuracy, and agreement of .tflite with Keras.

Looks at model.keras and model.tflite in every folder of the workdir (or in --names) and
writes evaluation.json beside them.

  python -m train.evaluate --workdir=runs/digits --split=test
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import gmpq_tf.layers  # noqa: F401  registers the layers that the model files name
from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.export.app import run_main
from gmpq_tf.export.errors import StageError
from gmpq_tf.export.flags import from_flags
from gmpq_tf.export.records import fingerprint, read_json, recorded_data
from gmpq_tf.export.run_config import WorkdirConfig, set_threads
from gmpq_tf.export.runtime import TFLiteModel
from gmpq_tf.files import write_json
from gmpq_tf.names import suggest

from .inputs import load_float_model

RESULT = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured.

    Args:
        names: Folders in the workdir whose models are measured; none: all of them.
        split: Images to measure on: validation for choices, test only at the end.
    """

    names: tuple[str, ...] | None = None
    split: Literal["validation", "test"] = "validation"


def evaluate(
    config: EvaluateConfig, data: DataConfig, run: WorkdirConfig, name: str
) -> dict[str, Any]:
    """Measures the models of one folder, unless that has been done.

    Args:
        config: on which split.
        data: the images, scaled as the model was trained with.
        run: where.
        name: the folder.

    Returns:
        What evaluation.json says: split, images, accuracy and, with a .tflite,
        tflite_accuracy, agreement and file_bytes.

    Raises:
        ValueError: a file cannot be read or does not suit the images.
    """
    folder = Path(run.workdir) / name
    dataset = load_dataset(data)
    identity = _identity(config, dataset, folder)
    before = read_json(folder / RESULT)
    if before.get("identity") == identity and not run.overwrite:
        return before
    model = load_float_model(folder / "model.keras", dataset)
    path = folder / "model.tflite"
    tflite = TFLiteModel(path) if path.exists() else None
    batches = dataset.test() if config.split == "test" else dataset.validation()
    with dataset.naming_damaged_images():
        result = {"split": config.split, **compare(model, tflite, batches)}
    result["file_bytes"] = path.stat().st_size if tflite else None
    write_json(folder / RESULT, {**result, "identity": identity})
    return result


def compare(
    model: keras.Model, tflite: TFLiteModel | None, batches: Iterable
) -> dict[str, Any]:
    """Runs a Keras model and a .tflite on the same images.

    Args:
        model: a classifier.
        tflite: its file, or None.
        batches: (images, labels).

    Returns:
        images, accuracy, tflite_accuracy, agreement; the last two None without a file.
    """
    labels, classes, tflite_classes = [], [], []
    for images, batch_labels in batches:
        pixels = np.asarray(images)
        labels.append(np.asarray(batch_labels))
        classes.append(np.argmax(model.predict_on_batch(pixels), axis=-1))
        if tflite is not None:
            outputs = tflite.predict(pixels, batch_size=len(pixels))
            tflite_classes.append(np.argmax(outputs, axis=-1))
    truth, found = np.concatenate(labels), np.concatenate(classes)
    result = {"images": len(truth), "accuracy": float(np.mean(found == truth))}
    if tflite is None:
        return {**result, "tflite_accuracy": None, "agreement": None}
    shipped = np.concatenate(tflite_classes)
    return {
        **result,
        "tflite_accuracy": float(np.mean(shipped == truth)),
        "agreement": float(np.mean(shipped == found)),
    }


def model_folders(
    workdir: str | Path, names: tuple[str, ...] | None = None
) -> list[str]:
    """Returns the folders of a workdir that hold a model.

    Args:
        workdir: folder of the run.
        names: the folders asked for; None: all.

    Returns:
        Their names, "pretrain" first.

    Raises:
        StageError: there is none, or one that was asked for holds no model.
    """
    found = [path.parent.name for path in Path(workdir).glob("*/model.keras")]
    found.sort(key=lambda name: (name != "pretrain", name))
    for name in names or ():
        if name not in found:
            raise StageError(
                "Each of names must be a folder with a model.keras. "
                f"Received: {name!r} in {workdir}. {suggest(name, found)}"
            )
    if not found:
        raise StageError(
            f"The workdir must hold a model. Received: {workdir}. "
            "Run `python -m train.pretrain` or `train.finetune` with it first."
        )
    return list(names or found)


def describe(name: str, result: dict[str, Any]) -> str:
    """Returns one line on a result."""
    text = f"{name}: {100 * result['accuracy']:.2f} %"
    if result["tflite_accuracy"] is not None:
        text += f", .tflite {100 * result['tflite_accuracy']:.2f} %"
        text += f", agreement {100 * result['agreement']:.2f} %"
    return f"{text} ({result['images']} {result['split']} images)"


def _identity(config: EvaluateConfig, dataset: Dataset, folder: Path) -> dict[str, Any]:
    data = dataclasses.asdict(dataset.config)
    used = ["dataset", "image_size", "scaling", "mean", "std"]
    if config.split == "validation":
        used += ["validation_size", "split_seed"]
    files = [folder / "model.keras", folder / "model.tflite"]
    identity = {
        "split": config.split,
        "data": {key: data[key] for key in used},
        "files": {path.name: fingerprint(path) for path in files if path.exists()},
    }
    return json.loads(json.dumps(identity))


def main(argv: list[str]) -> None:
    """Runs the command; flags must have been parsed.

    Args:
        argv: not used.
    """
    run, config = from_flags(WorkdirConfig), from_flags(EvaluateConfig)
    set_threads(run.threads)
    for name in model_folders(run.workdir, config.names):
        data = from_flags(DataConfig, inherited=recorded_data(run.workdir, name))
        print(describe(name, evaluate(config, data, run, name)))


def run() -> None:
    """Entry point of `gmpq-evaluate`."""
    run_main(main, __doc__, EvaluateConfig, DataConfig, WorkdirConfig)


if __name__ == "__main__":
    run()
