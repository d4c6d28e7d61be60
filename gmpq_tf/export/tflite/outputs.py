"""Compares the outputs of a file with those of its Keras model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gmpq_tf.export.tflite.lowering import Lowered
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.twin.run import FileTwin
from gmpq_tf.graph import read_graph
from gmpq_tf.task import Numbers, Output, match_labels
from gmpq_tf.task.output_names import check_finite
from gmpq_tf.transform.batches import Batch, ModelInputs
from gmpq_tf.transform.forward import predictor

BUILTIN_IMAGES = 256
# Numbers that differ by at most 4 steps are near: 1.6 % of a grid of 256 codes.
NEAR_STEPS = 4.0


@dataclass(frozen=True)
class OutputReport:
    """How one output of a file compares with that of the Keras model.

    Figures about decisions are None if the output is plain numbers, those about numbers
    if it is a decision, and those about labels if there are none.

    Args:
        name: name of the output.
        kind: "classes", "binary" or "numbers".
        known_from: "stated", "graph", "loss", "labels" or "assumed".
        compared: what is compared, in words.
        agreement: share of equal decisions of Keras and the file.
        builtin_agreement: the same for the built-in kernels, on at most 256 images or
            so.
        ties: share of decisions that differ only between scores that are equal in Keras
            or in the file.
        near: share of numbers within `near_steps` steps of each other.
        builtin_near: the same for the built-in kernels.
        near_steps: number of steps.
        step: step of the output's grid; 1/256 after a final softmax or sigmoid, None if
            it is not known.
        max_steps: largest difference in steps.
        mean_steps: mean difference in steps.
        max_error: largest difference.
        mean_error: mean difference.
        relative_error: mean difference over the range of Keras's numbers.
        keras_accuracy: share of right decisions of the Keras model.
        tflite_accuracy: share of right decisions of the file.
        keras_error: mean difference of the Keras model's numbers from their labels.
        tflite_error: mean difference of the file's numbers from their labels.
        twin_agreement: share of equal decisions of the file and its integer twin; None
            if they were not compared.
        twin_accuracy: share of right decisions of the twin.
        twin_max_error: largest difference of the file from its twin.
    """

    name: str
    kind: str
    known_from: str
    compared: str
    agreement: float | None
    builtin_agreement: float | None
    ties: float | None
    near: float | None
    builtin_near: float | None
    near_steps: float | None
    step: float | None
    max_steps: float | None
    mean_steps: float | None
    max_error: float
    mean_error: float
    relative_error: float | None
    keras_accuracy: float | None
    tflite_accuracy: float | None
    keras_error: float | None
    tflite_error: float | None
    twin_agreement: float | None = None
    twin_accuracy: float | None = None
    twin_max_error: float | None = None

    @property
    def alike(self) -> float:
        """Share that agrees, 0 to 1: equal decisions and ties, or near numbers."""
        if self.agreement is None:
            return 1.0 if self.near is None else self.near
        return self.agreement + (self.ties or 0.0)

    def __str__(self) -> str:
        if self.agreement is not None:
            figures = f"agreement {100 * self.agreement:.2f} %"
            if self.ties:
                figures += f" and {100 * self.ties:.2f} % ties"
            if self.twin_agreement is not None:
                figures += f", {100 * self.twin_agreement:.2f} % with its integer twin"
            if self.keras_accuracy is not None and self.tflite_accuracy is not None:
                figures += (
                    f", accuracy {100 * self.keras_accuracy:.2f} % of Keras, "
                    f"{100 * self.tflite_accuracy:.2f} % of the file"
                )
            if self.twin_accuracy is not None:
                figures += f", {100 * self.twin_accuracy:.2f} % of the twin"
        else:
            figures = f"mean error {self.mean_error:.3g}"
            if self.relative_error is not None:
                figures += f" ({100 * self.relative_error:.2f} % of the range)"
            figures += f", largest {self.max_error:.3g}"
            if self.twin_max_error is not None:
                figures += f", {self.twin_max_error:.3g} from its integer twin"
            if self.mean_steps is not None:
                figures += f"; {self.mean_steps:.2f} steps"
            if self.keras_error is not None and self.tflite_error is not None:
                figures += (
                    f"; from the labels {self.keras_error:.4g} of Keras, "
                    f"{self.tflite_error:.4g} of the file"
                )
        return f"{self.name}: {figures} ({self.compared})"


@dataclass(frozen=True)
class Outputs:
    """How the outputs of a file compare with those of the Keras model.

    Args:
        images: number of inputs that were compared.
        agreement: share of equal decisions of Keras and the file, for the output where
            it is smallest; if no output is a decision, the share of numbers within
            `near_steps` steps.
        builtin_agreement: the same for the built-in kernels, on at most 256 images or
            so.
        ties: share of decisions that differ only between scores that are equal in Keras
            or in the file.
        max_steps: largest difference of an output, in steps of its grid.
        mean_steps: mean difference, for the output where it is largest.
        keras_accuracy: share of right decisions of the Keras model, if there are labels
            and one output is a decision.
        tflite_accuracy: the same for the file.
        twin_agreement: share of equal decisions of the file and its integer twin, for
            the output where it is smallest; None if they were not compared.
        twin_accuracy: share of right decisions of the twin.
        outputs: one report for each output.
    """

    images: int
    agreement: float | None
    builtin_agreement: float | None
    ties: float | None
    max_steps: float | None
    mean_steps: float | None
    keras_accuracy: float | None
    tflite_accuracy: float | None
    twin_agreement: float | None
    twin_accuracy: float | None
    outputs: tuple[OutputReport, ...]


def compare_outputs(
    student: Any,
    lowered: Lowered,
    described: Sequence[Output],
    batches: Iterable[Batch],
    near_steps: float = NEAR_STEPS,
    twin: FileTwin | None = None,
) -> Outputs:
    """Runs Keras, the runtime's and built-in kernels on equal inputs, and compares.

    Args:
        student: the Keras model.
        lowered: the file made of it.
        described: the kinds of its outputs.
        batches: inputs and labels.
        near_steps: largest difference of near numbers, in steps.
        twin: twin of the file, to compare with it too; None: not compared.

    Raises:
        TaskError: labels do not fit the kinds of the outputs.
    """
    fast = TFLiteModel(lowered.content, kernels=lowered.runs_in)
    builtin = TFLiteModel(lowered.content, use_xnnpack=False)
    tallies = [
        Tally(output, step, near_steps)
        for output, step in zip(described, lowered.output_steps, strict=True)
    ]
    inputs, graph, images = ModelInputs(lowered.graph), read_graph(student), 0
    predict = predictor(student)
    for arrays, labels in batches:
        fast.check(arrays)
        wanted = as_arrays(predict(inputs.structured(arrays)))
        received = as_arrays(fast.predict(arrays))
        own_labels = match_labels(graph, labels)
        for row in zip(tallies, wanted, received, own_labels, strict=True):
            tally, want, have, own = row
            tally.add(want, have, own)
        if twin is not None:
            exact = twin.predict(arrays)
            for row in zip(tallies, exact, received, own_labels, strict=True):
                tally, want, have, own = row
                tally.add_twin(want, have, own)
        if images < BUILTIN_IMAGES:
            others = as_arrays(builtin.predict(arrays))
            for tally, want, have in zip(tallies, wanted, others, strict=True):
                tally.add_builtin(want, have)
        images += len(arrays[0])
    return summary(images, [tally.report() for tally in tallies])


def summary(images: int, reports: Sequence[OutputReport]) -> Outputs:
    """The figures of a whole file, from those of its outputs."""
    deciding = [r for r in reports if r.agreement is not None]
    near = min(_known(r.near for r in reports), default=None)
    builtin_near = min(_known(r.builtin_near for r in reports), default=None)
    worst = min(deciding, key=lambda r: r.alike, default=None)
    judged = [r for r in deciding if r.keras_accuracy is not None]
    right = judged[0] if len(judged) == 1 else None
    return Outputs(
        images,
        worst.agreement if worst else near,
        min(_known(r.builtin_agreement for r in deciding), default=builtin_near),
        worst.ties if worst else None,
        max(_known(r.max_steps for r in reports), default=None),
        max(_known(r.mean_steps for r in reports), default=None),
        right.keras_accuracy if right else None,
        right.tflite_accuracy if right else None,
        min(_known(r.twin_agreement for r in deciding), default=None),
        right.twin_accuracy if right else None,
        tuple(reports),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


class Tally:
    """Accumulates the figures of an `OutputReport` over batches.

    Args:
        output: the output.
        step: step of its grid; None: not known.
        near_steps: largest difference of near numbers, in steps.
    """

    def __init__(
        self, output: Output, step: float | None, near_steps: float = NEAR_STEPS
    ) -> None:
        self.output, self.kind = output, output.kind
        self.step, self.near_steps = step, near_steps
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.largest, self.low, self.high = 0.0, np.inf, -np.inf
        self.twin_largest: float | None = None

    def add(
        self, want: np.ndarray, have: np.ndarray, labels: np.ndarray | None = None
    ) -> None:
        """Adds a batch.

        Args:
            want: outputs of Keras, [B, ...].
            have: outputs of the file, of the same shape.
            labels: labels of the batch, [B] or [B, ...], or None.

        Raises:
            TaskError: an output is NaN or infinite, or labels do not fit.
        """
        self._check_finite("the Keras model", want)
        self._check_finite("the file", have)
        off = np.abs(want.astype("float64") - have)
        self._mean("error", off)
        self.largest = max(self.largest, float(off.max()))
        self.low = min(self.low, float(want.min()))
        self.high = max(self.high, float(want.max()))
        self._alike("", want, have)
        if labels is None:
            return
        for name, scores in (("keras", want), ("tflite", have)):
            if isinstance(self.kind, Numbers):
                wanted = self.kind.matched(scores, labels)
                self._mean(f"{name}_error", np.abs(scores - wanted))
            else:
                self._mean(f"{name}_accuracy", self.kind.right(scores, labels))

    def add_builtin(self, want: np.ndarray, have: np.ndarray) -> None:
        """Adds a batch of Keras's numbers and the built-in kernels', [B, ...] each.

        Raises:
            TaskError: an output of the kernels is NaN or infinite.
        """
        self._check_finite("the file under built-in kernels", have)
        self._alike("builtin_", want, have)

    def add_twin(
        self, want: np.ndarray, have: np.ndarray, labels: np.ndarray | None = None
    ) -> None:
        """Adds a batch of the twin's numbers and the file's.

        Args:
            want: outputs of the twin, [B, ...].
            have: outputs of the file, [B, ...].
            labels: labels of the batch, [B] or [B, ...], or None.

        Raises:
            TaskError: an output of the twin is NaN or infinite, or labels do not fit.
        """
        self._check_finite("the integer twin", want)
        off = float(np.max(np.abs(want.astype("float64") - have), initial=0.0))
        self.twin_largest = max(self.twin_largest or 0.0, off)
        if isinstance(self.kind, Numbers):
            return
        same = self.kind.decide(want) == self.kind.decide(have)
        self._mean("twin_agreement", same)
        if labels is not None:
            self._mean("twin_accuracy", self.kind.right(want, labels))

    def _check_finite(self, whose: str, scores: np.ndarray) -> None:
        check_finite({self.output.name: scores}, whose)

    def _alike(self, prefix: str, want: np.ndarray, have: np.ndarray) -> None:
        if not isinstance(self.kind, Numbers):
            differ = self.kind.decide(want) != self.kind.decide(have)
            tie = (self.kind.margin(want) == 0) | (self.kind.margin(have) == 0)
            self._mean(f"{prefix}agreement", ~differ)
            self._mean(f"{prefix}ties", differ & tie)
        elif self.step is not None:
            # A small tolerance, since numbers and step are rounded to float32.
            limit = (self.near_steps + 0.01) * self.step
            self._mean(f"{prefix}near", np.abs(want - have) <= limit)

    def _mean(self, name: str, values: np.ndarray) -> None:
        self.sums[name] += float(np.sum(values, dtype="float64"))
        self.counts[name] += values.size

    def __getitem__(self, name: str) -> float | None:
        return self.sums[name] / self.counts[name] if self.counts[name] else None

    def report(self) -> OutputReport:
        """The comparison over all batches."""
        mean, step = self["error"] or 0.0, self.step
        span = self.high - self.low
        return OutputReport(
            name=self.output.name,
            kind=self.kind.name,
            known_from=self.output.known_from,
            compared=self.output.compared,
            agreement=self["agreement"],
            builtin_agreement=self["builtin_agreement"],
            ties=self["ties"],
            near=self["near"],
            builtin_near=self["builtin_near"],
            near_steps=None if self.kind.decides or not step else self.near_steps,
            step=step,
            max_steps=self.largest / step if step else None,
            mean_steps=mean / step if step else None,
            max_error=self.largest,
            mean_error=mean,
            relative_error=mean / span if span > 0 else None,
            keras_accuracy=self["keras_accuracy"],
            tflite_accuracy=self["tflite_accuracy"],
            keras_error=self["keras_error"],
            tflite_error=self["tflite_error"],
            twin_agreement=self["twin_agreement"],
            twin_accuracy=self["twin_accuracy"],
            twin_max_error=self.twin_largest,
        )


def as_arrays(value: Any) -> list[np.ndarray]:
    """The outputs of a model as a flat list of arrays, [B, ...] each."""
    return [np.asarray(part) for part in keras.tree.flatten(value)]
