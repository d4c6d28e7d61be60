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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import gmpq_tf.layers  # noqa: F401  registers the layers that the model files name
from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.objects import found_objects, returns_objects
from gmpq_tf.export.tflite.outputs import OutputReport, Tally
from gmpq_tf.export.tflite.region_detector import RegionDetector, open_tflite
from gmpq_tf.export.tflite.region_files import head_path
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.twin import integer_twin
from gmpq_tf.files import write_json
from gmpq_tf.report.objects import CURVES
from gmpq_tf.run.app import run_main
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.records import fingerprint, read_json, recorded_data
from gmpq_tf.run.run_config import WorkdirConfig, set_threads
from gmpq_tf.spelling import suggest
from gmpq_tf.task import Output, OutputKind, outputs_of
from gmpq_tf.task.kinds import OutputKindName, read_kind
from gmpq_tf.task.output_names import check_finite
from gmpq_tf.task.task import Task
from gmpq_tf.task.tasks import task_of
from gmpq_tf.train.first_look import look
from gmpq_tf.train.inputs import as_labelled, load_float_model, task_for
from gmpq_tf.train.show_objects import write_curves
from gmpq_tf.transform.calibrate import input_quantizers
from gmpq_tf.transform.forward import predictor

RESULT = "evaluation.json"
# Figures of a file: of its decisions, and of its errors where outputs are numbers.
FILE_DECISIONS = ("tflite_accuracy", "agreement", "ties", "twin_agreement")
FILE_ERRORS = ("mean_error", "max_error", "relative_error", "twin_max_error")
# What computed the outputs of each prefix, for messages.
WHOSE = {"": "the Keras model", "tflite_": "the file", "twin_": "the integer twin"}


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
    """

    names: tuple[str, ...] | None = None
    split: Literal["validation", "test"] = "validation"
    output_kind: OutputKindName | None = None


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
        and what was compared. For a quantized model also twin_accuracy; with a .tflite
        file tflite_accuracy, agreement with Keras and with the twin (or errors) and
        file_bytes. Other metrics of the task have their own names, such as map_07,
        tflite_map_07 and twin_map_07 for a detector.

    Raises:
        ValueError: a file cannot be read or does not suit the images.
    """
    folder = Path(run.workdir) / name
    dataset = as_labelled(dataset or load_dataset(data))
    identity = _identity(config, dataset, folder)
    before = read_json(folder / RESULT)
    if before.get("identity") == identity and not run.overwrite:
        return before
    model = load_float_model(folder / "model.keras", dataset)
    path = folder / "model.tflite"
    tflite = open_tflite(path) if path.exists() else None
    batches = dataset.test() if config.split == "test" else dataset.validation()
    with dataset.naming_damaged_images():
        if config.output_kind is None:
            look(model, dataset, name)
        pairs = batches if dataset.labelled else ((x, None) for x in batches)
        twin = twin_of_student(model)
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
        )
    result = {"split": config.split, **measured}
    if not task.share:
        result["metric"] = task.headline
    result["file_bytes"] = tflite.file_bytes if tflite else None
    write_json(folder / RESULT, {**result, "identity": identity})
    return result


def measure_both(
    model: keras.Model,
    tflite: TFLiteModel | RegionDetector | None,
    batches: Iterable,
    output_kind: str | OutputKind | None = None,
    twin: keras.Model | None = None,
    class_names: Sequence[str] = (),
    task: Task | None = None,
    curves: Path | None = None,
) -> dict[str, Any]:
    """Runs a Keras model, its integer twin and a .tflite file on the same images.

    Args:
        model: a classifier or a detector.
        tflite: its file, or None.
        batches: pairs (images, labels as the data set has them) or (images, None);
            images are [N, H, W, C], scaled as the model reads them.
        output_kind: meaning of the output that decides; None: that of the task.
        twin: `integer_twin` of the model, or None.
        class_names: one name per class.
        task: what the model is trained for; None: boxes for a detector, else classes.
        curves: file to write precision against recall to, for detectors; None: no file.

    Returns:
        images (their number), accuracy, tflite_accuracy, agreement, twin_accuracy,
        twin_agreement (of twin and file), compared (the decisions, in words) and the
        errors of the file; None where there is no file or no twin. Outputs that are
        plain numbers have errors, and no accuracy or agreement. Other metrics of the
        task have their own names, with tflite_ and twin_ before those of the file and
        the twin; a file that returns detected objects has only these.

    Raises:
        TaskError: outputs that are measured are NaN or infinite, or labels do not fit.
    """
    task, names = task or task_of(model), list(model.output_names)
    if len(names) > 1:  # Keras has the names of layers, not the keys of a dict
        names = [output.name for output in outputs_of(model)]
    # A file that returns objects has no scores to compare with Keras's.
    finds = isinstance(tflite, TFLiteModel) and returns_objects(tflite)
    output = _deciding(model, task, output_kind)
    tally, images = Tally(output, None), 0
    models = {"": model, "tflite_": tflite, "twin_": twin}
    models = {p: _predictor(each) for p, each in models.items() if each is not None}
    meters = {prefix: task.meter(class_names) for prefix in models}
    for pixels, labels in batches:
        pixels = np.asarray(pixels)
        computed = _computed(models, pixels)
        objects = found_objects(computed.pop("tflite_")) if finds else None
        named: dict[str, Any] = {
            prefix: dict(zip(names, each, strict=True))
            for prefix, each in computed.items()
        }
        if finds:
            named["tflite_"] = objects
        deciding = {prefix: each[task.deciding] for prefix, each in computed.items()}
        known = output.kind.decides and task.placewise and labels is not None
        _add(tally, deciding, np.asarray(task.decided(labels)) if known else None)
        for prefix, meter in meters.items():
            if meter is not None and labels is not None:
                if isinstance(named[prefix], dict):
                    check_finite(named[prefix], WHOSE[prefix])
                meter.add(named[prefix], labels)
        images += len(pixels)
    if curves is not None:
        write_curves(curves, meters)
    compared = tflite is not None and not finds
    return {
        "images": images,
        **_compared(tally.report(), output.kind.decides, compared),
        **_figures(meters),
    }


def _computed(
    models: Mapping[str, Callable], pixels: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """What each model returns for a batch, in the order of its outputs.

    Args:
        models: prefix -> `_predictor` of a Keras model, its integer twin or its file.
        pixels: [B, H, W, C], as the model reads them.
    """
    return {prefix: _listed(predict(pixels)) for prefix, predict in models.items()}


def _predictor(model: keras.Model | TFLiteModel | RegionDetector) -> Callable:
    """A function [B, H, W, C] -> outputs of the batch."""
    if isinstance(model, keras.Model):
        return predictor(model)
    return lambda pixels: model.predict(pixels, batch_size=len(pixels))


def _add(
    tally: Tally, deciding: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> None:
    """Adds a batch to a tally: Keras against the file, and the twin against the file.

    Args:
        tally: counts equal and right decisions, and adds up errors.
        deciding: prefix -> the output that decides, [B, ...]. "" (Keras) is always
            there. Without "tflite_" Keras and the twin are compared with themselves.
        labels: labels of the batch, [B] or [B, ...], or None.
    """
    tally.add(deciding[""], deciding.get("tflite_", deciding[""]), labels)
    if "twin_" in deciding:
        exact = deciding["twin_"]
        tally.add_twin(exact, deciding.get("tflite_", exact), labels)


def _compared(row: OutputReport, decides: bool, has_file: bool) -> dict[str, Any]:
    """The figures of the comparison; those of the file are None if there is none."""
    errors = () if decides else FILE_ERRORS
    of_file = {n: getattr(row, n) for n in FILE_DECISIONS + errors}
    return {
        "accuracy": row.keras_accuracy,
        "twin_accuracy": row.twin_accuracy,
        "compared": row.compared,
        **(of_file if has_file else dict.fromkeys(of_file)),
    }


def _kind_without_labels(model: keras.Model, dataset: Dataset) -> OutputKind | None:
    """What the output decides where no labels say so, as the export has it.

    Several sigmoids are as many decisions. None: what the task says.
    """
    if dataset.labelled or dataset.targets is not None or len(model.outputs) > 1:
        return None
    kind = outputs_of(model)[0].kind
    return kind if kind.decides else None


def _deciding(
    model: keras.Model, task: Task, output_kind: str | OutputKind | None
) -> Output:
    """The output that decides, with the kind of the task or of the flag."""
    if output_kind is None:
        return task.output(model)
    shape = tuple(model.outputs[task.deciding].shape[1:])
    return Output("output", read_kind(output_kind), "stated", shape)


def _listed(outputs: Any) -> list[np.ndarray]:
    """Arrays in the order of `model.outputs`."""
    return [np.asarray(each) for each in keras.tree.flatten(outputs)]


def _figures(meters: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the figures of all meters, each name with its meter's prefix."""
    return {
        f"{prefix}{name}": figure
        for prefix, meter in meters.items()
        if meter is not None
        for name, figure in meter.report().items()
    }


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
    if compared := result.get("compared"):
        what += f"; {compared}"
    return f"{name}: {', '.join(said) or 'numbers, without a .tflite'} ({what})"


def _identity(config: EvaluateConfig, dataset: Dataset, folder: Path) -> dict[str, Any]:
    data = dataclasses.asdict(dataset.config)
    used = ["dataset", "image_size", "channels", "scaling", "mean", "std"]
    used += [name for name in ("targets", "loss") if data[name] is not None]
    if config.split == "validation":
        used += ["validation_size", "split_seed"]
    file = folder / "model.tflite"
    files = [folder / "model.keras", file, head_path(file)]
    identity = {
        "twin": True,  # results of versions without the twin are measured again
        "split": config.split,
        "output_kind": config.output_kind,
        "data": {key: data[key] for key in used},
        "images": dataset.identity(config.split),
        "files": {path.name: fingerprint(path) for path in files if path.exists()},
    }
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
