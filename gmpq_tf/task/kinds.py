"""The kinds of outputs: how scores are read as decisions, and when these are right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from gmpq_tf.spelling import suggest

# Scores that differ by less than this share of the largest one count as equal: such
# differences come from the order of summation.
_EQUAL = 1e-6


class TaskError(ValueError):
    """The kind of an output is not known, or labels do not fit it."""


@dataclass(frozen=True)
class Classes:
    """One score per class, as probabilities or logits; the largest score decides.

    Args:
        axis: axis of the classes, counted from the end: -1 is the last.
    """

    axis: int = -1
    name: ClassVar[str] = "classes"
    decides: ClassVar[bool] = True

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Returns the class of each decision, `argmax_c scores`; ties: the first one.

        Args:
            scores: [B, ...] with the classes along `axis`.

        Returns:
            int64, of the shape of `scores` without that axis.
        """
        return np.argmax(scores, axis=self.axis)

    def margin(self, scores: np.ndarray) -> np.ndarray:
        """Returns how far the largest score lies above the second; 0: a tie.

        Args:
            scores: [B, ...] with the classes along `axis`.

        Returns:
            Differences of scores, in the shape of `scores` without that axis.
        """
        if scores.shape[self.axis] < 2:
            return np.full(self.decide(scores).shape, np.inf)
        ordered = np.moveaxis(np.partition(scores, -2, axis=self.axis), self.axis, -1)
        gap = ordered[..., -1] - ordered[..., -2]
        largest = np.abs(ordered).max(axis=-1)
        return np.where(gap <= _EQUAL * largest, 0.0, gap)

    def right(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether each decision is the label; bool in the shape of the decisions.

        Args:
            scores: [B, ...] with the classes along `axis`.
            labels: class numbers in the shape of the decisions (a last axis of 1 is
                dropped), or in the shape of `scores`: one-hot or soft labels, of which
                the largest counts.

        Raises:
            TaskError: labels have another shape, or are not class numbers.
        """
        shape = np.shape(self.decide(scores))
        if labels.shape == scores.shape and shape != labels.shape[:-1] + (1,):
            return self.decide(scores) == self.decide(labels)
        if labels.shape not in (shape, (*shape, 1)):
            raise _misfit(labels, self.name, f"{shape} or {scores.shape}")
        if labels.dtype.kind not in "biuf":
            raise TaskError(
                "Labels of classes must be numbers. "
                f"Received: {labels.flat[0]!r}. Give the place of each class in the "
                "order of the scores."
            )
        wanted = labels.reshape(shape)
        classes = scores.shape[self.axis]
        wrong = (wanted != np.floor(wanted)) | (wanted < 0) | (wanted >= classes)
        if np.any(wrong):
            raise TaskError(
                f"Labels of {classes} classes must be whole numbers from 0 to "
                f"{classes - 1}. Received: {wanted[wrong].flat[0]!r}. Leave out what "
                "has no label, or say what the output is."
            )
        return self.decide(scores) == wanted

    def compared(self, shape: tuple) -> str:
        """Says what is compared, given the shape of one image's scores."""
        classes = shape[self.axis]
        places = [n for i, n in enumerate(shape, -len(shape)) if i != self.axis]
        return f"argmax of {classes} classes{_places(places)}"


@dataclass(frozen=True)
class Binary:
    """Each number is a separate decision: yes where it is above a threshold.

    Examples: one sigmoid (or its logit), a sigmoid for each of several labels, a
    sigmoid at each pixel.

    Args:
        threshold: 0.5 for probabilities, 0 for logits.
    """

    threshold: float = 0.5
    name: ClassVar[str] = "binary"
    decides: ClassVar[bool] = True

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Whether each score is above the threshold; bool in the shape of `scores`."""
        return np.asarray(scores) > self.threshold

    def margin(self, scores: np.ndarray) -> np.ndarray:
        """Returns each score's distance from the threshold, same shape; 0: a tie."""
        gap = np.abs(np.asarray(scores) - self.threshold)
        return np.where(gap <= _EQUAL * max(self.threshold, _EQUAL), 0.0, gap)

    def right(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Whether each decision is the label; bool in the shape of `scores`.

        Args:
            scores: floats of any shape [B, ...].
            labels: 0 and 1 (or -1 and 1), in the shape of the scores; a last axis of 1
                may be missing.

        Raises:
            TaskError: labels have another shape, or other values.
        """
        bare = scores.shape[:-1] if scores.shape[-1] == 1 else scores.shape
        if labels.shape not in (scores.shape, bare):
            raise _misfit(labels, self.name, f"{scores.shape}")
        check_yes_or_no(labels)
        return self.decide(scores) == (labels.reshape(scores.shape) > 0.5)

    def compared(self, shape: tuple) -> str:
        """Says what is compared, given the shape of one image's scores."""
        text = "decisions at 0.5" if self.threshold else "decisions above 0"
        count = math.prod(shape)
        places = shape[:-1] if len(shape) > 1 else ()
        if len(shape) == 1 and count > 1:
            return f"{text}, {count} of each image"
        return f"{text}{_places(places)}"


@dataclass(frozen=True)
class Numbers:
    """Plain numbers without a decision: regression, boxes, images."""

    name: ClassVar[str] = "numbers"
    decides: ClassVar[bool] = False

    def matched(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns labels in the shape of the scores.

        Args:
            scores: numbers of any shape [B, ...].
            labels: numbers of that shape; a last axis of 1 may be missing, or added.

        Raises:
            TaskError: labels have another shape, which only seems to fit where it has
                as many numbers.
        """
        bare = scores.shape[:-1] if scores.shape[-1] == 1 else scores.shape
        if labels.shape not in (scores.shape, bare, (*scores.shape, 1)):
            raise _misfit(labels, self.name, f"{scores.shape}")
        return labels.reshape(scores.shape)

    def compared(self, shape: tuple) -> str:
        """Says what is compared, given the shape of one image's numbers."""
        return "numbers, in steps"


OutputKind = Classes | Binary | Numbers
OutputKindName = Literal["classes", "binary", "binary_logit", "numbers"]
# Name -> kind, as users state it.
KINDS: dict[str, OutputKind] = {
    "classes": Classes(),
    "binary": Binary(0.5),
    "binary_logit": Binary(0.0),
    "numbers": Numbers(),
}


def read_kind(value: str | OutputKind) -> OutputKind:
    """Returns the kind with a name.

    Args:
        value: a name in `KINDS`, or a kind, which is returned.

    Raises:
        TaskError: it is neither.
    """
    if isinstance(value, (Classes, Binary, Numbers)):
        return value
    if value not in KINDS:
        raise TaskError(
            "An output must be classes (the largest score decides), binary (each "
            "number, at 0.5), binary_logit (each number, at 0) or numbers. "
            f"Received: {value!r:.80}. {suggest(str(value), KINDS)}"
        )
    return KINDS[value]


def check_yes_or_no(labels: np.ndarray) -> None:
    """Requires labels that a probability can have: from 0 to 1, or -1 for no.

    Args:
        labels: any shape.

    Raises:
        TaskError: there are others, such as the 255 of a mask.
    """
    fits = (labels == -1) | ((labels >= 0) & (labels <= 1))
    if not np.all(fits):
        raise TaskError(
            "Labels of yes or no must be 1 and 0 (or -1), and those of probabilities "
            f"from 0 to 1. Received: {labels[~fits].flat[0]!r}. Divide masks of 0 and "
            "255 by 255, or say what the output is, e.g. numbers."
        )


def _places(places: list | tuple) -> str:
    if math.prod(places) == 1:
        return ""
    return f" at each of {' x '.join(map(str, places))} places"


def _misfit(labels: np.ndarray, kind: str, wanted: str) -> TaskError:
    return TaskError(
        f"Labels must fit an output that is {kind}: of the shape {wanted}. "
        f"Received: labels of shape {labels.shape}. Pass those of the images, or say "
        "what the output is."
    )
