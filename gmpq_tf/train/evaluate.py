"""Measures the models of a workdir: accuracy, and agreement of .tflite with Keras.

A quantized model is also computed with the integer arithmetic of its file
(`gmpq.integer_twin`). That accuracy equals the file's, image by image; the accuracy of
the Keras model may differ a little, because it rounds in float.

A decision is the class of the largest score or, for a single output, whether it exceeds
0.5 (sigmoid) or 0 (logit); --output_kind overrides this. Detectors are measured by mean
average precision; the decisions compared are the classes of default boxes. Models of
tensors are measured by their loss, and numbers compared in steps of the output's grid.

Looks at model.keras and model.tflite in every folder of the workdir (or in --names) and
writes evaluation.json beside them.

  python -m train.evaluate --workdir=runs/digits --split=test
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import keras

import gmpq_tf.layers  # noqa: F401  registers the layers that the model files name
from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.region_detector import open_tflite
from gmpq_tf.export.tflite.region_files import head_path
from gmpq_tf.export.tflite.twin import integer_twin
from gmpq_tf.files import write_json
from gmpq_tf.report.objects import CURVES
from gmpq_tf.run.app import run_main
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.records import fingerprint, read_json, recorded_data
from gmpq_tf.run.run_config import WorkdirConfig, set_threads
from gmpq_tf.spelling import suggest
from gmpq_tf.task import OutputKind, outputs_of
from gmpq_tf.task.kinds import OutputKindName
from gmpq_tf.train.counting import counted
from gmpq_tf.train.first_look import look
from gmpq_tf.train.inputs import (
    PRETRAINED,
    as_labelled,
    load_float_model,
    task_for,
)
from gmpq_tf.train.measure import measure_both
from gmpq_tf.transform.calibrate import input_quantizers

RESULT = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Which models are measured, and on which images.

    Args:
        names: Folders in the workdir whose models are measured; none: all of them.
        split: Images to measure on: validation for choices, test only at the end.
        output_kind: Meaning of the output: classes (the largest score decides), binary
            (each number is a probability, decided at 0.5), binary_logit (decided at 0)
            or numbers, which have errors and no accuracy; none: as the model's last
            layer tells.
        twin: Compute quantized models in the integers of their files too, which adds
            about half of the time that Keras takes. The model's file, if there is one,
            is measured in any case.
    """

    names: tuple[str, ...] | None = None
    split: Literal["validation", "test"] = "validation"
    output_kind: OutputKindName | None = None
    twin: bool = True


def evaluate(
    config: EvaluateConfig,
    data: DataConfig,
    run: WorkdirConfig,
    name: str,
    dataset: Dataset | None = None,
) -> dict[str, Any]:
    """Measures the models of one folder, unless that has been done.

    Args:
        config: the split, and the meaning of the output.
        data: the images, scaled as the model was trained with.
        run: the workdir.
        name: name of the folder.
        dataset: the images, if the caller has read them; None: they are read here.

    Returns:
        The content of evaluation.json: split, images, accuracy (None without labels)
        and what was compared; without labels float_agreement (or float_error), of the
        workdir's float model. For a quantized model also twin_accuracy, unless the
        twin is left out; with a .tflite file tflite_accuracy, agreement with Keras and
        with the twin (or errors) and file_bytes. Other metrics of the task have their
        own names, such as map_07, tflite_map_07 and twin_map_07 for a detector.

    Raises:
        ValueError: a file cannot be read or does not suit the images.
    """
    folder = Path(run.workdir) / name
    dataset = as_labelled(dataset or load_dataset(data))
    identity = _identity(config, dataset, folder)
    before = read_json(folder / RESULT)
    enough = (identity, {**identity, "twin": True})
    if before.get("identity") in enough and not run.overwrite:
        return before
    model = load_float_model(folder / "model.keras", dataset)
    reference = _reference(folder, dataset)
    floats = None if reference is None else load_float_model(reference, dataset)
    path = folder / "model.tflite"
    tflite = open_tflite(path) if path.exists() else None
    batches = dataset.test() if config.split == "test" else dataset.validation()
    with dataset.naming_damaged_images():
        if config.output_kind is None:
            look(model, dataset, name)
        pairs = batches if dataset.labelled else ((x, None) for x in batches)
        pairs = counted(pairs, dataset.sizes[config.split], name, run.progress)
        twin = twin_of_student(model) if config.twin else None
        names = dataset.class_names
        task = task_for(model, dataset)
        measured = measure_both(
            model,
            tflite,
            pairs,
            config.output_kind or _kind_without_labels(model, dataset),
            twin,
            names,
            task,
            folder / CURVES,
            floats,
        )
    result = {"split": config.split, **measured}
    if not task.share:
        result["metric"] = task.headline
    result["file_bytes"] = tflite.file_bytes if tflite else None
    write_json(folder / RESULT, {**result, "identity": identity})
    return result


def _reference(folder: Path, dataset: Dataset) -> Path | None:
    """The workdir's float model, where no labels tell how good another one is."""
    path = folder.parent / PRETRAINED
    known = dataset.labelled or dataset.targets is not None
    return None if known or path.parent == folder or not path.exists() else path


def _kind_without_labels(model: keras.Model, dataset: Dataset) -> OutputKind | None:
    """What the output decides where no labels say so, as the export has it.

    Several sigmoids are as many decisions. None: what the task says.
    """
    if dataset.labelled or dataset.targets is not None or len(model.outputs) > 1:
        return None
    kind = outputs_of(model)[0].kind
    return kind if kind.decides else None


def twin_of_student(model: keras.Model) -> keras.Model | None:
    """Returns the integer twin of a model, or None.

    Args:
        model: a float or quantized model, as a stage saved it.

    Returns:
        The twin; None for a float model, and for one that has no integer form.
    """
    if not input_quantizers(model):
        return None
    try:
        return integer_twin(model)
    except ExportError as error:
        print(f"{model.name} is measured in float only: {error}")
        return None


def model_folders(
    workdir: str | Path, names: tuple[str, ...] | None = None
) -> list[str]:
    """Returns the folders of a workdir that hold a model.

    Args:
        workdir: folder of the run.
        names: the folders asked for; None: all.

    Returns:
        Names of the folders, "pretrain" first.

    Raises:
        StageError: no folder holds a model, or one that was asked for does not.
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
    """Returns the line that is printed for a folder.

    Args:
        name: name of the folder.
        result: from `evaluate`.
    """
    said = []
    for prefix, of in (("", ""), ("twin_", " in integers"), ("tflite_", " of .tflite")):
        for figure in ("map_07", "map_area", "map_coco"):
            if (share := result.get(f"{prefix}{figure}")) is not None:
                said.append(f"{figure}{of} {100 * share:.2f} %")
        for figure in ("loss", "mean_iou"):
            if (value := result.get(f"{prefix}{figure}")) is not None:
                said.append(f"{figure}{of} {value:.4g}")
    if result.get("map_07", 0.0) is None:
        said.append("no average precision, for want of objects that are not difficult")
    if result["accuracy"] is not None:
        said.append(f"{100 * result['accuracy']:.2f} %")
    if result.get("twin_accuracy") is not None:
        said.append(f"in integers {100 * result['twin_accuracy']:.2f} %")
    if result["tflite_accuracy"] is not None:
        said.append(f".tflite {100 * result['tflite_accuracy']:.2f} %")
    if result.get("float_agreement") is not None:
        said.append(f"{100 * result['float_agreement']:.2f} % as the float model")
    if result.get("float_error") is not None:
        said.append(
            f"{result['float_error']:.3g} from the float model in the mean, "
            f"{100 * (result['float_relative_error'] or 0):.2f} % of its range"
        )
    if result.get("agreement") is not None:
        said.append(f"agreement {100 * result['agreement']:.2f} %")
    if result.get("twin_agreement") is not None:
        said.append(f"{100 * result['twin_agreement']:.2f} % in integers")
    if result.get("mean_error") is not None:
        said.append(f".tflite off by {result['mean_error']:.3g} in the mean")
        said.append(f"{result['max_error']:.3g} at the most")
    if result.get("twin_max_error") is not None:
        said.append(f"{result['twin_max_error']:.3g} in integers")
    what = f"{result['images']} {result['split']} images"
    # Average precision does not come from the decisions that `compared` is about.
    shares = ("agreement", "twin_agreement", "float_agreement")
    agreed = any(result.get(share) is not None for share in shares)
    decided = "map_07" not in result or agreed
    if decided and (compared := result.get("compared")):
        what += f"; {compared}"
    nothing = "no labels to measure by"
    return f"{name}: {', '.join(said) or nothing} ({what})"


def _identity(config: EvaluateConfig, dataset: Dataset, folder: Path) -> dict[str, Any]:
    data = dataclasses.asdict(dataset.config)
    used = ["dataset", "image_size", "channels", "scaling", "mean", "std"]
    used += [name for name in ("targets", "loss") if data[name] is not None]
    if config.split == "validation":
        used += ["validation_size", "split_seed"]
    file = folder / "model.tflite"
    files = [folder / "model.keras", file, head_path(file)]
    identity = {
        "twin": config.twin,
        "split": config.split,
        "output_kind": config.output_kind,
        "data": {key: data[key] for key in used},
        "images": dataset.identity(config.split),
        "files": {path.name: fingerprint(path) for path in files if path.exists()},
    }
    if (reference := _reference(folder, dataset)) is not None:
        identity["float"] = fingerprint(reference)
    return json.loads(json.dumps(identity))


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    run, config = from_flags(WorkdirConfig), from_flags(EvaluateConfig)
    set_threads(run.threads)
    for name in model_folders(run.workdir, config.names):
        data = from_flags(DataConfig, inherited=recorded_data(run.workdir, name))
        print(describe(name, evaluate(config, data, run, name)))


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-evaluate`."""
    run_main(main, __doc__, EvaluateConfig, DataConfig, WorkdirConfig)


if __name__ == "__main__":
    run()
