"""Reads what every stage starts from: the float model and the images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.budget import LATENCY_MS
from gmpq_tf.data import DataConfig, DataError, Dataset, load_dataset
from gmpq_tf.detection.region_layers import is_detector
from gmpq_tf.graph import check_float, read_graph
from gmpq_tf.limits import Limit
from gmpq_tf.models import MODELS, load_model
from gmpq_tf.models.file_checks import check_model_path, expand_user
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.records import fingerprint, recorded_data
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.task.kinds import TaskError
from gmpq_tf.task.task import Task
from gmpq_tf.task.tasks import task_of
from gmpq_tf.transform.rewrite import flattened

PRETRAINED = "pretrain/model.keras"


def data_from_flags(run: WorkdirConfig, model: str | None) -> DataConfig:
    """Reads the data flags; those not given are taken from the float model's training.

    Args:
        run: its workdir may hold the float model.
        model: the `--model` flag; None: the workdir's own.

    Returns:
        The data configuration.

    Raises:
        StageError: the input scaling is not that of the workdir's float model.
    """
    recorded = {} if model else recorded_data(run.workdir)
    data = from_flags(DataConfig, inherited=recorded)
    for name in ("scaling", "mean", "std"):
        _check_recorded(recorded, name, getattr(data, name))
    return data


def model_path(run: WorkdirConfig, model: str | None) -> Path:
    """Returns the file of the float model.

    Args:
        run: its workdir may hold the model.
        model: the `--model` flag; None: the workdir's own.

    Returns:
        The path of an existing file.

    Raises:
        ValueError: there is no such file, or it is not a .keras or .h5 file.
    """
    path = Path(run.workdir) / PRETRAINED
    if model:
        path = expand_user(model)
        _refuse_name(model)
        check_model_path(path)
    elif not path.is_file():
        raise StageError(
            f"The float model must be a .keras or .h5 file. Received: {str(path)!r}, "
            "which does not exist. Train one with `python -m train.pretrain` in this "
            "workdir, or name one with --model."
        )
    return path


def _refuse_name(model: str) -> None:
    if model in MODELS and not Path(model).exists():
        raise StageError(
            "The float model must be a .keras or .h5 file that has been trained. "
            f"Received: model={model!r}, a built-in name. Train it first: "
            f"`python -m train.pretrain --model={model}` in this workdir, and leave "
            "--model out."
        )


def load_inputs(
    path: Path, data: DataConfig, labels: bool = True
) -> tuple[keras.Model, Dataset]:
    """Reads the float model, and the images in the shape it takes.

    Args:
        path: a `.keras` or `.h5` file.
        data: the images; a size and channels left open are taken from the model.
        labels: whether images without labels are refused.

    Returns:
        The model, and the images with labels encoded as its loss takes them.

    Raises:
        ValueError: a file is unreadable, or classes or image shape differ.
    """
    model = load_model(path)
    check_float(model)
    dataset = load_dataset(data, image_shape(model))
    if labels:
        dataset.check_labelled()
    check_model(model, dataset)
    if dataset.targets is not None:  # what its outputs say is read from its loss
        model.compile(loss=task_for(model, dataset).loss())
    if dataset.config.channels != data.channels:
        colours = "grey" if dataset.input_shape[2] == 1 else "RGB"
        print(f"Images are read as {colours}, as the model reads them.")
    return model, as_targets(model, dataset)


def as_targets(model: keras.Model, dataset: Dataset) -> Dataset:
    """Returns the images with labels encoded as the model's loss takes them.

    Args:
        model: the model that is trained on them.
        dataset: the images, with the labels of the data set.
    """
    return dataclasses.replace(dataset, encode=task_for(model, dataset).encode)


def task_for(model: keras.Model, dataset: Dataset) -> Task:
    """Returns the task of a model on a data set.

    Args:
        model: a functional model.
        dataset: the data; for tensors its targets and loss belong to the task.

    Raises:
        TaskError: the outputs of the model do not suit the data set.
    """
    return task_of(model, dataset.targets)


def as_labelled(dataset: Dataset) -> Dataset:
    """Returns the images with the data set's own labels, which metrics take."""
    return dataclasses.replace(dataset, encode=None)


def comparable(model: keras.Model, dataset: Dataset, count: int) -> Any:
    """Returns training images, with labels where each output has one.

    Args:
        model: the model that reads them.
        dataset: the images.
        count: largest number of images.

    Returns:
        A `tf.data.Dataset` of batches (images, labels), or of images alone where
        outputs can be compared only with the float model's.
    """
    batches = as_labelled(dataset).calibration(count)
    if not dataset.labelled or task_for(model, dataset).placewise:
        return batches
    return batches.map(lambda images, labels: images)


def image_shape(model: keras.Model) -> tuple[int | None, ...] | None:
    """Returns (height, width, channels) of a model's image input; None: it has none."""
    shape = tuple(model.inputs[0].shape[1:])
    return shape if len(model.inputs) == 1 and len(shape) == 3 else None


def load_float_model(path: Path, dataset: Dataset) -> keras.Model:
    """Reads the float model and checks that it suits the images.

    Args:
        path: a `.keras` or `.h5` file.
        dataset: the images.

    Returns:
        The model, with nested models inlined.

    Raises:
        ValueError: the file is unreadable, or classes or image shape differ.
    """
    model = load_model(path)
    check_model(model, dataset)
    return flattened(model)


def check_model(model: keras.Model, dataset: Dataset) -> None:
    """Refuses a model that does not suit the images.

    Args:
        model: a classifier, a detector, or for tensors any functional model.
        dataset: the images.

    Raises:
        ValueError: the model is not functional, or has several inputs, or outputs of no
            known task; or the labels belong to another task; or number of classes or
            image shape differ.
    """
    read_graph(model)  # refuses what could not be rewritten before it is trained
    if len(model.inputs) != 1:
        raise ValueError(
            "The commands train models of one input. "
            f"Received: model={model.name!r} with {len(model.inputs)} inputs. Use "
            "gmpq_tf from Python for others."
        )
    tensors = dataset.targets and not is_detector(model)
    holds = "tensors" if tensors else task_of(model).holds
    if holds != dataset.holds:
        raise ValueError(_other_task(model, holds, dataset))
    if dataset.labelled:
        try:
            task_for(model, dataset).check(dataset.class_names)
        except TaskError as error:
            raise DataError(str(error)) from error
    shape, images = tuple(model.input_shape[1:]), dataset.input_shape
    fits = len(shape) == len(images) and all(
        side in (None, given) for side, given in zip(shape, images, strict=True)
    )
    if not fits:
        raise ValueError(
            "The model must read images of the data set's shape. "
            f"Received: model input {shape}, images {images}. {_reshaping(shape)}"
            if not dataset.as_stored
            else "The model must read arrays of the data set's shape. "
            f"Received: model input {shape}, inputs {images}. Choose another "
            "--dataset or --model."
        )


def _reshaping(shape: tuple[int | None, ...]) -> str:
    """Returns advice: the flags that give images the shape a model reads."""
    if len(shape) != 3 or shape[2] not in (1, 3, None):
        return "Choose another --model: images have height, width and 1 or 3 channels."
    height, width, channels = shape
    size = height if height == width else f"{height}x{width}"
    given = [f"--image_size={size}"] if height and width else []
    given += [f"--channels={channels}"] if channels else []
    return f"Set {' '.join(given)}, or choose another --dataset or --model."


# Data sets that suit models of a task, for messages.
FITTING = {
    "classes": "one with a class an image, such as cifar10 or a folder of folders",
    "boxes": "one with boxes, such as voc0712, a VOC folder (JPEGImages, Annotations) "
    "or a COCO folder",
    "tensors": "one with targets: .npz files with inputs and targets, or folders "
    "images and masks; or --targets=inputs for an autoencoder",
}


def _other_task(model: keras.Model, holds: str, dataset: Dataset) -> str:
    return (
        f"A model whose outputs are {holds} needs images with {holds}. Received: "
        f"model={model.name!r} with dataset={dataset.config.dataset!r}, whose images "
        f"have {dataset.holds}. Choose another --dataset: {FITTING[holds]}; or a "
        f"--model for {dataset.holds}."
    )


def file_identity(path: Path) -> dict[str, str]:
    """Returns path and SHA-256 prefix of a file, for the record of a stage."""
    return {"path": str(path), "sha256": fingerprint(path)}


def times_identity(limits: Sequence[Limit]) -> str | None:
    """Returns a SHA-256 prefix of the milliseconds that a budget counts in.

    It changes if the latency table was replaced by one of another device.

    Args:
        limits: of all budgets; None is returned if none is of milliseconds.
    """
    tables = [each.table for each in limits if each.resource == LATENCY_MS]
    if not tables:
        return None
    rows = {name: np.asarray(own).tolist() for name, own in tables[0].layers.items()}
    found = json.dumps([rows, tables[0].constant], sort_keys=True)
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def _check_recorded(recorded: Mapping[str, Any], name: str, value: Any) -> None:
    before = recorded.get(name, value)
    same = list(before or ()) == list(value or ())
    if not same:
        raise StageError(
            "Images must be scaled as the float model was trained with. "
            f"Received: {name}={value!r}, trained with {name}={before!r}. "
            f"Leave --{name} out, or name another --model."
        )
