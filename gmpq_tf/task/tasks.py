"""Finds the task of a model: its losses, metrics and kind of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from gmpq_tf.detection import default_boxes_of
from gmpq_tf.detection.region_layers import region_search_of
from gmpq_tf.task.box_task import BoxTask
from gmpq_tf.task.classification import ClassTask
from gmpq_tf.task.kinds import TaskError
from gmpq_tf.task.region_task import RegionTask
from gmpq_tf.task.targets import Targets
from gmpq_tf.task.task import Task
from gmpq_tf.task.tensor_task import TensorTask


def task_of(model: keras.Model, targets: Targets | None = None) -> Task:
    """Returns the task of a model: boxes if it is a detector, else classes.

    Args:
        model: a functional model, or a student from `quantize_model`.
        targets: targets of a data set of tensors, if the model is trained on one.

    Raises:
        TaskError: its outputs suit none of the tasks.
    """
    if targets is not None:
        return TensorTask(model, targets)
    return _detector_task(model) or ClassTask(model)


def guidance_of(
    model: keras.Model,
) -> Callable[[Sequence[Any], Sequence[Any], float], Any] | None:
    """Returns a task's own distillation loss over all outputs together.

    Args:
        model: a functional model.

    Returns:
        A function (outputs of the teacher, outputs of the student, temperature) -> a
        scalar; None if each output is compared by its kind, see
        `gmpq_tf.task.guidance`: also those of a detector that has other outputs than
        this package trains.
    """
    try:
        task = _detector_task(model)
    except TaskError:
        return None
    return None if task is None else task.guidance


def divergence_of(
    model: keras.Model,
) -> Callable[[Sequence[Any], Sequence[Any]], Any] | None:
    """Returns a task's own distance of outputs from the float model's.

    Args:
        model: a functional model.

    Returns:
        A function (outputs, outputs of the float model) -> distance of each image, [B];
        None if outputs can be compared element by element, according to their kinds.
    """
    search = region_search_of(model)
    return None if search is None else RegionTask(model, search).divergence


def _detector_task(model: keras.Model) -> BoxTask | RegionTask | None:
    """The task of a model with default boxes or regions; None for other models."""
    if (boxes := default_boxes_of(model)) is not None:
        return BoxTask(model, boxes)
    search = region_search_of(model)
    return None if search is None else RegionTask(model, search)
