"""The interface of tasks; classification.py and box_task.py implement it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import keras

from gmpq_tf.task.outputs import Output, classifier_kind, outputs_of


class Meter(Protocol):
    """Accumulates batches of outputs and labels, and computes metrics."""

    def add(self, outputs: Any, labels: Any) -> None:
        """Adds a batch: outputs by name, and labels as the data set has them."""

    def report(self) -> dict[str, float | None]:
        """Returns metric name -> value, 0 to 1, including the task's headline."""


class Task:
    """What a model is trained for.

    Attributes:
        holds: kind of labels in its data sets: `"classes"`, `"boxes"` or `"tensors"`.
        headline: name of the metric that models are compared by.
        of_images: words after that metric in percent: "... the {} images".
        placewise: whether decisions are compared with labels one by one.
        model: the model that is trained for it.
        deciding: index of the output that decides, in the order of `model.outputs`.
        encode: converts the labels of a batch to what the losses take; None: no
            conversion.
        share: whether the headline is a share, 0 to 1, where more is better; else it
            is a loss.
    """

    holds: ClassVar[str]
    headline: ClassVar[str]
    of_images: ClassVar[str]
    placewise: ClassVar[bool]
    model: keras.Model
    deciding: int = 0
    encode: Callable[[Any], Any] | None = None
    share: ClassVar[bool] = True

    def loss(self) -> Any:
        """Returns the `loss` argument of `compile`."""
        raise NotImplementedError

    def metrics(self) -> list[Any]:
        """Returns the `metrics` argument of `compile`."""
        raise NotImplementedError

    def check(self, class_names: Sequence[str]) -> None:
        """Refuses a model whose outputs do not match the classes.

        Raises:
            TaskError: the number of scores differs; the message says how.
        """
        raise NotImplementedError

    def measure(
        self, model: keras.Model, batches: Any, class_names: Sequence[str]
    ) -> dict[str, float]:
        """Measures a compiled model.

        Args:
            model: the model that is trained, with the task's outputs.
            batches: (images, labels as the data set has them).
            class_names: one name per class.

        Returns:
            Metric name -> value; the headline is missing where it is undefined.
        """
        raise NotImplementedError

    def output(self, model: keras.Model) -> Output:
        """The deciding output of a model, with the kind that this task gives it.

        Args:
            model: the model of the task, or a student made of it.
        """
        if len(model.outputs) > 1:
            return outputs_of(model)[self.deciding]
        shape = tuple(model.outputs[0].shape[1:])
        return Output("output", classifier_kind(model), "labels", shape)

    def decided(self, labels: Any) -> Any:
        """The labels of the deciding output."""
        return labels

    def found(self, outputs: Mapping[str, Any]) -> Any:
        """Objects that outputs find in the images; None if the task has no objects.

        Args:
            outputs: name -> output, [B, ...].
        """

    def said(self, figure: float) -> str:
        """The headline in words, such as `98.06 %`."""
        return f"{100 * figure:.2f} %" if self.share else f"{figure:.4g}"

    def meter(self, class_names: Sequence[str]) -> Meter | None:
        """Returns a meter of further metrics; None if decisions are all there is."""
        raise NotImplementedError
