"""What a model is trained for: its losses, what it is measured by, what labels fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from gmpq_tf.detection import default_boxes_of
from gmpq_tf.task.box_task import BoxTask
from gmpq_tf.task.classification import ClassTask
from gmpq_tf.task.task import Task


def task_of(model: keras.Model) -> Task:
    """What a model is trained for: boxes, where it carries default boxes, or classes.

    Args:
        model: a functional model, or what `quantize_model` made of it.

    Raises:
        TaskError: its outputs are neither's.
    """
    boxes = default_boxes_of(model)
    return ClassTask(model) if boxes is None else BoxTask(model, boxes)


def guidance_of(
    model: keras.Model,
) -> Callable[[Sequence[Any], Sequence[Any], float], Any] | None:
    """How far outputs are from a teacher's, where a task says so of all at once.

    Args:
        model: a functional model.

    Returns:
        (outputs of the teacher, those of the student, temperature) -> a scalar; None:
        each output by what it says, see `gmpq_tf.task.guidance`.
    """
    boxes = default_boxes_of(model)
    return None if boxes is None else BoxTask(model, boxes).guidance
