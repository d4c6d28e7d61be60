"""The task of any other model: tensors, by a loss that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from gmpq_tf.spelling import suggest
from gmpq_tf.task.kinds import Classes, TaskError
from gmpq_tf.task.outputs import Output, outputs_of
from gmpq_tf.task.targets import ALONE, Target, Targets
from gmpq_tf.task.task import Task
from gmpq_tf.task.tensor_losses import (
    check_losses,
    make_tensor_loss,
    sensible_loss,
)
from gmpq_tf.transform.rewrite import all_scores

_OF_CLASSES = "sparse_categorical_crossentropy"


class TensorTask(Task):
    """Arrays for arrays: autoencoders, regression, maps of an image.

    Args:
        model: a functional model of one output, or of a dict of outputs.
        targets: what the data set asks for, and the loss.

    Raises:
        TaskError: the outputs are not those the targets are for, or a loss that does
            not fit.
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

    @property
    def alone(self) -> bool:
        """Whether the model has one output, and not a dict of it."""
        return not isinstance(self.model.output, Mapping)

    def shaped(self, labels: Any) -> Any:
        """Targets in the rank of the outputs: a last axis of 1 may be missing."""
        if self.alone:
            return _widened(labels, self.targets[0], self.shapes[0], self.losses[0])
        given = labels if isinstance(labels, Mapping) else {self.names[0]: labels}
        return {
            name: _widened(given[name], target, shape, loss)
            for name, target, shape, loss in zip(
                self.names, self.targets, self.shapes, self.losses, strict=True
            )
        }

    def loss(self) -> Any:
        """The losses, one an output."""
        if self.alone:
            return self._made[0]
        return dict(zip(self.names, self._made, strict=True))

    def metrics(self) -> list[Any]:
        """None: the loss is what models are compared by."""
        return []

    def check(self, class_names: Sequence[str]) -> None:
        """Nothing more: targets were compared with the outputs."""

    def output(self, model: keras.Model) -> Output:
        """What the first output says, as the loss has it."""
        return outputs_of(model, loss=self.loss())[0]

    def decided(self, labels: Any) -> Any:
        """Targets of the first output."""
        return labels[self.names[0]] if isinstance(labels, Mapping) else labels

    def measure(
        self, model: keras.Model, batches: Any, class_names: Sequence[str]
    ) -> dict[str, float]:
        """The loss, and of maps of classes their mean IoU."""
        meter = self.meter(class_names)
        for inputs, labels in batches:
            meter.add(model.predict_on_batch(np.asarray(inputs)), labels)
        found = meter.report().items()
        return {name: value for name, value in found if value is not None}

    def meter(self, class_names: Sequence[str]) -> TensorMeter:
        """The loss over all examples."""
        return TensorMeter(self)

    def _matched(self, arrays: Mapping[str, Target]) -> list[Target]:
        """The targets of each output, in the order of `model.outputs`."""
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
    """The loss over batches, each example as much as any other.

    Args:
        task: whose losses are added.
    """

    def __init__(self, task: TensorTask) -> None:
        self.task, self.examples, self.total = task, 0, 0.0
        self.outputs = outputs_of(task.model, loss=task.loss())
        first = self.outputs[0]
        self.classes = 0
        if isinstance(first.kind, Classes) and len(first.shape) > 1:
            self.classes = first.shape[first.kind.axis]
        self.counts: np.ndarray = np.zeros((self.classes, self.classes), np.int64)

    def add(self, outputs: Any, labels: Any) -> None:
        """Adds a batch of outputs (an array, or by name), and of targets."""
        names = self.task.names
        if len(names) == 1:  # a quantized model may call its output otherwise
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
        """`loss`, the mean over examples; of maps of classes `mean_iou`, 0 to 1."""
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
        assert isinstance(kind, Classes)
        said = kind.decide(scores)
        real = kind.decide(labels) if labels.shape == scores.shape else labels
        pairs = real.reshape(-1).astype(np.int64) * self.classes + said.reshape(-1)
        square = (self.classes, self.classes)
        self.counts += np.bincount(pairs, minlength=self.classes**2).reshape(square)


def _widened(labels: Any, target: Target, shape: tuple, loss: str) -> Any:
    """Targets with a last axis of 1, where the output has it and they do not."""
    missing = shape == (*target.shape, 1) and loss != _OF_CLASSES
    return labels[..., None] if missing else labels


def _check_fits(name: str, shape: tuple, target: Target, loss: str) -> None:
    """Refuses targets of another shape, and classes that the output has not."""
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


def _same(own: tuple, shape: tuple) -> bool:
    return len(own) == len(shape) and all(
        b is None or a == b for a, b in zip(own, shape, strict=True)
    )
