"""The task of classifiers: a class for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras

from gmpq_tf.task.kinds import TaskError
from gmpq_tf.task.task import Task
from gmpq_tf.transform.rewrite import logits_of, scores_of


class ClassTask(Task):
    """The task of classifiers: a class for each image, from one output of scores.

    Args:
        model: a functional classifier of logits or probabilities; with a single score
            it distinguishes two classes.

    Raises:
        TaskError: the model has several outputs.
    """

    holds: ClassVar[str] = "classes"
    headline: ClassVar[str] = "accuracy"
    of_images: ClassVar[str] = "of the {} images"
    placewise: ClassVar[bool] = True

    def __init__(self, model: keras.Model) -> None:
        if len(model.outputs) != 1:
            raise TaskError(
                "The commands train classifiers of one output, and detectors, whose "
                "offsets end in a DefaultBoxesLayer (gmpq_tf.detection). Received: "
                f"model={model.name!r} with {len(model.outputs)} outputs, no default "
                "boxes. For others name data with targets by --dataset: .npz files "
                "with inputs and targets."
            )
        self.model = model

    def loss(self) -> keras.losses.Loss:
        """Returns the cross-entropy for integer labels, binary for a single score."""
        logits = gives_logits(self.model)
        if self.model.output_shape[-1] == 1:
            return keras.losses.BinaryCrossentropy(from_logits=logits)
        return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns top-1 accuracy; a single score above 0.5 means the second class."""
        if self.model.output_shape[-1] > 1:
            return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        threshold = 0.0 if gives_logits(self.model) else 0.5
        # BinaryAccuracy refuses a threshold of 0, which logits need.
        function = keras.metrics.binary_accuracy
        return [
            keras.metrics.MeanMetricWrapper(
                function, name="accuracy", threshold=threshold
            )
        ]

    def check(self, class_names: Sequence[str]) -> None:
        """Refuses outputs that do not have one score per class.

        Raises:
            TaskError: the number of scores differs.
        """
        shape = tuple(self.model.output_shape)
        if shape[1:] == (1,) and len(class_names) == 2:
            return
        if shape[-1] != len(class_names):
            raise TaskError(
                "A model needs one output for each class of the data set. Received: "
                f"output shape {shape} for {len(class_names)} classes. Build the model "
                "with that many classes or choose its own data set; where labels are "
                "not needed, --labels=none leaves them unread. A model that gives no "
                "class needs targets: .npz files, images with masks, or for an "
                "autoencoder --targets=inputs."
            )
        if scores_of(self.model)[1] == "sigmoid":
            raise TaskError(
                "Images of one class each need a softmax, logits, or for two classes "
                f"one sigmoid. Received: model={self.model.name!r} with "
                f"{shape[-1]} sigmoids, which are independent labels. Give its last "
                "layer no activation (its decisions stay the same), or use gmpq_tf "
                "from Python."
            )

    def measure(
        self, model: keras.Model, batches: Any, class_names: Sequence[str]
    ) -> dict[str, float]:
        """Returns loss and accuracy by name, from `evaluate` of the compiled model."""
        logs = model.evaluate(batches, verbose=0, return_dict=True)
        return {name: float(value) for name, value in logs.items()}

    def meter(self, class_names: Sequence[str]) -> None:
        """Returns None: accuracy of the decisions is the only metric."""


def gives_logits(model: keras.Model) -> bool:
    """Whether a classifier's output is logits rather than probabilities.

    Args:
        model: a functional classifier with one output.

    Returns:
        False where a softmax or sigmoid is the last operation.
    """
    return logits_of(model) is model.outputs[0]
