"""Finds the task of a model: its losses, metrics and kind of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from gmpq_tf.detection import default_boxes_of
from gmpq_tf.task.box_task import BoxTask
from gmpq_tf.task.classification import ClassTask
from gmpq_tf.task.targets import Targets
from gmpq_tf.task.task import Task
from gmpq_tf.task.tensor_task import TensorTask


def task_of(model: keras.Model, targets: Targets | None = None) -> Task:
    """Returns the task of a model: boxes if it has default boxes, else classes.

    Args:
        model: a functional model, or a student from `quantize_model`.
        targets: of a data set of tensors, for which the model is trained then.

    Raises:
        TaskError: its outputs suit neither task.
    """
    if targets is not None:
        return TensorTask(model, targets)
    boxes = default_boxes_of(model)
    return ClassTask(model) if boxes is None else BoxTask(model, boxes)


def guidance_of(
    model: keras.Model,
) -> Callable[[Sequence[Any], Sequence[Any], float], Any] | None:
    """Returns a task's own distillation loss over all outputs together.

    Args:
        model: a functional model.

    Returns:
        A function (outputs of the teacher, outputs of the student, temperature) -> a
        scalar; None if each output is compared by its kind, see
        `gmpq_tf.task.guidance`.
    """
    boxes = default_boxes_of(model)
    return None if boxes is None else BoxTask(model, boxes).guidance
