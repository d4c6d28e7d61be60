"""The task of models with tensors as targets, trained by a loss that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from gmpq_tf.spelling import suggest
from gmpq_tf.task.kinds import Binary, Classes, TaskError
from gmpq_tf.task.outputs import Output, outputs_of
from gmpq_tf.task.targets import ALONE, Target, Targets
from gmpq_tf.task.task import Task
from gmpq_tf.task.tensor_losses import (
    LOSSES,
    check_losses,
    make_tensor_loss,
    sensible_loss,
)
from gmpq_tf.transform.rewrite import all_scores

_OF_CLASSES = "sparse_categorical_crossentropy"


class TensorTask(Task):
    """The task of autoencoders, regression, segmentation and the like.

    Args:
        model: a functional model of one output, or of a dict of outputs.
        targets: the targets of the data set, and the loss.

    Raises:
        TaskError: outputs and targets do not match, or a loss does not fit.
    """

    holds: ClassVar[str] = "tensors"
    headline: ClassVar[str] = "loss"
    of_images: ClassVar[str] = "loss on the {} examples"
    placewise: ClassVar[bool] = True
    share: ClassVar[bool] = False

    def __init__(self, model: keras.Model, targets: Targets) -> None:
        self.model, self.encode = model, self.shaped
        found = outputs_of(model)
        self.names = [output.name for output in found]
        self.shapes = [output.shape for output in found]
        self.targets = self._matched(targets.arrays)
        endings = [ending for _, ending in all_scores(model)]
        chosen = check_losses(targets.loss) if targets.loss is not None else {}
        for name in chosen:
            if name and name not in self.names:
                raise TaskError(
                    "A loss must be for an output of the model. "
                    f"Received: loss of {name!r}. {suggest(name, self.names)}"
                )
        self.losses: list[str] = []
        for name, shape, ending, target in zip(
            self.names, self.shapes, endings, self.targets, strict=True
        ):
            own = chosen.get(name) or chosen.get("")
            own = own or sensible_loss(shape, ending, target, name)
            _check_fits(name, shape, target, own)
            self.losses.append(own)
        self._made = [
            make_tensor_loss(loss, ending, name)
            for loss, ending, name in zip(self.losses, endings, self.names, strict=True)
        ]
        for name, target, loss in zip(
            self.names, self.targets, self.losses, strict=True
        ):
            _check_range(name, target, loss)

    @property
    def alone(self) -> bool:
        """Whether the model has a single output that is not in a dict."""
        return not isinstance(self.model.output, Mapping)

    def shaped(self, labels: Any) -> Any:
        """Adds a last axis of 1 to targets [B, ...] where their output has one."""
        if self.alone:
            labels = self.decided(labels)
            return _widened(labels, self.targets[0], self.shapes[0], self.losses[0])
        given = labels if isinstance(labels, Mapping) else {self.names[0]: labels}
        return {
            name: _widened(given[name], target, shape, loss)
            for name, target, shape, loss in zip(
                self.names, self.targets, self.shapes, self.losses, strict=True
            )
        }

    def loss(self) -> Any:
        """Returns the loss, or a dict of one loss per output."""
        if self.alone:
            return self._made[0]
        return dict(zip(self.names, self._made, strict=True))

    def metrics(self) -> list[Any]:
        """Returns []: models are compared by the loss."""
        return []

    def check(self, class_names: Sequence[str]) -> None:
        """Does nothing: the constructor has compared targets and outputs."""

    def output(self, model: keras.Model) -> Output:
        """Returns the first output with the kind that its loss implies."""
        return outputs_of(model, loss=self.loss())[0]

    def decided(self, labels: Any) -> Any:
        """Returns the targets of the first output."""
        return labels[self.names[0]] if isinstance(labels, Mapping) else labels

    def measure(
        self, model: keras.Model, batches: Any, class_names: Sequence[str]
    ) -> dict[str, float]:
        """Returns the loss and, for maps of classes, the mean IoU."""
        meter = self.meter(class_names)
        for inputs, labels in batches:
            meter.add(model.predict_on_batch(np.asarray(inputs)), labels)
        found = meter.report().items()
        return {name: value for name, value in found if value is not None}

    def meter(self, class_names: Sequence[str]) -> TensorMeter:
        """Returns a meter of the loss over all examples."""
        return TensorMeter(self)

    def _matched(self, arrays: Mapping[str, Target]) -> list[Target]:
        """Returns the targets of each output, in the order of `model.outputs`."""
        if len(self.names) > 1 and self.alone:
            raise TaskError(
                "Several outputs must be a dict, so that targets are for one by name. "
                f"Received: model={self.model.name!r} with {len(self.names)} outputs. "
                "Build it with keras.Model(inputs, {'a': ..., 'b': ...})."
            )
        if list(arrays) == [ALONE]:
            if len(self.names) == 1:
                return [arrays[ALONE]]
            raise TaskError(
                "A model of several outputs needs targets for each. "
                f"Received: model={self.model.name!r} with {', '.join(self.names)}; "
                "targets for one. Name the arrays "
                f"{', '.join(f'targets_{name}' for name in self.names)}."
            )
        if set(arrays) != set(self.names):
            raise TaskError(
                "Targets must be for the outputs of the model, by their names. "
                f"Received: targets for {', '.join(sorted(arrays))}; outputs "
                f"{', '.join(self.names)}. Name the arrays "
                f"{', '.join(f'targets_{name}' for name in self.names)}."
            )
        return [arrays[name] for name in self.names]


class TensorMeter:
    """Accumulates the loss over batches; all examples have the same weight.

    Args:
        task: the task, whose losses are computed.
    """

    def __init__(self, task: TensorTask) -> None:
        self.task, self.examples, self.total = task, 0, 0.0
        self.outputs = outputs_of(task.model, loss=task.loss())
        first, whole = self.outputs[0], task.targets[0].whole
        self.classes = 0
        if isinstance(first.kind, Classes) and len(first.shape) > 1:
            self.classes = first.shape[first.kind.axis]
        elif isinstance(first.kind, Binary) and len(first.shape) > 2 and whole:
            self.classes = 2 if first.shape[-1] == 1 else 0
        self.counts: np.ndarray = np.zeros((self.classes, self.classes), np.int64)

    def add(self, outputs: Any, labels: Any) -> None:
        """Adds a batch of outputs (an array, or by name), and of targets."""
        names = self.task.names
        if len(names) == 1:  # a quantized model may name its output differently
            outputs = {names[0]: keras.tree.flatten(outputs)[0]}
        labels = keras.tree.map_structure(np.asarray, labels)
        wanted = self.task.shaped(labels)
        wanted = wanted if isinstance(wanted, Mapping) else {names[0]: wanted}
        losses = self.task.loss()
        losses = losses if isinstance(losses, Mapping) else {names[0]: losses}
        count = len(np.asarray(outputs[names[0]]))
        for name in names:
            value = losses[name](wanted[name], np.asarray(outputs[name]))
            self.total += count * float(value)
        self.examples += count
        if self.classes:
            self._count(np.asarray(outputs[names[0]]), np.asarray(wanted[names[0]]))

    def report(self) -> dict[str, float | None]:
        """Returns `loss`, the mean over examples, and for masks `mean_iou`."""
        if not self.examples:
            return {"loss": None}
        found: dict[str, float | None] = {"loss": self.total / self.examples}
        if self.classes:
            hits = np.diag(self.counts)
            union = self.counts.sum(0) + self.counts.sum(1) - hits
            found["mean_iou"] = float(np.mean(hits[union > 0] / union[union > 0]))
        return found

    def _count(self, scores: np.ndarray, labels: np.ndarray) -> None:
        kind = self.outputs[0].kind
        assert isinstance(kind, (Classes, Binary))
        said = kind.decide(scores)
        real = labels
        if isinstance(kind, Binary):  # 0 and 1, or -1 and 1
            real = labels > 0.5
        elif labels.shape == scores.shape:
            real = kind.decide(labels)
        pairs = real.reshape(-1).astype(np.int64) * self.classes + said.reshape(-1)
        square = (self.classes, self.classes)
        self.counts += np.bincount(pairs, minlength=self.classes**2).reshape(square)


def _widened(labels: Any, target: Target, shape: tuple, loss: str) -> Any:
    """Adds a last axis of 1 to targets, if the output has it and they do not."""
    missing = shape == (*target.shape, 1) and loss != _OF_CLASSES
    return labels[..., None] if missing else labels


def _check_fits(name: str, shape: tuple, target: Target, loss: str) -> None:
    """Refuses targets of another shape, and classes that the output does not have."""
    wanted: tuple = shape
    fits = _same(target.shape, shape) or _same((*target.shape, 1), shape)
    if loss == _OF_CLASSES:
        wanted = shape[:-1]
        fits = _same(target.shape, wanted) or _same(target.shape, (*wanted, 1))
    if not fits:
        raise TaskError(
            f"Targets must have the shape that output {name!r} gives. Received: "
            f"targets of {target.shape} for {wanted}, with loss={loss!r}. Choose "
            "targets of that shape, another loss, or another --model."
        )
    if loss == _OF_CLASSES:
        classes = shape[-1]
        inside = target.whole and (target.low or 0) >= 0
        if not inside or (target.high is not None and target.high >= classes):
            raise TaskError(
                f"Classes must be whole numbers from 0 to {classes - 1}. Received: "
                f"targets from {target.low:g} to {target.high:g} for output {name!r} "
                f"of {classes} classes. Number them so (255 often means that a pixel "
                "has no class: give it one), or build the model with more."
            )


def _check_range(name: str, target: Target, loss: str) -> None:
    """Refuses targets that are no probabilities, where the loss takes them for such."""
    low, high = target.low or 0, target.high or 0
    shares = LOSSES[loss].reads != "numbers" and loss != _OF_CLASSES
    if shares and not 0 <= low <= high <= 1:
        raise TaskError(
            f"Targets of loss={loss!r} must be probabilities, from 0 to 1. Received: "
            f"targets from {low:g} to {high:g} for output {name!r}. Divide masks of 0 "
            "and 255 by 255, or choose a loss of numbers, such as mse."
        )


def _same(own: tuple, shape: tuple) -> bool:
    return len(own) == len(shape) and all(
        b is None or a == b for a, b in zip(own, shape, strict=True)
    )
