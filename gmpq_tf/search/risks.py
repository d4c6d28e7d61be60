"""The interface of the risks that are added to the task loss (eq. 6).

A risk has a `name`, a `weight(step)` and a `value(step)`; the product of weight and
value is added to the loss. What it stores in `step.values` and `step.noted` is logged.
`update(step)` is called once the gradients have been applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.search.importances import Importances


@dataclass
class Step:
    """The data of one training step from which risks are computed.

    Args:
        images: the hypernet's inputs, [B, ...], in the model's structure.
        labels: labels as given to `fit`.
        branches: the importances.
        drawn: indices of the images that are attributed, integers [A]; None: all.
        teacher_maps: maps of the float model, [A, H, W]; None without a teacher.
        maps: maps of the hypernet, [A, H, W]; None without a teacher.
        values: name of a risk -> its value, a scalar, once it has been computed.
        noted: name of another metric -> its value, a scalar.
    """

    images: Any
    labels: Any
    branches: Importances
    drawn: tf.Tensor | None = None
    teacher_maps: tf.Tensor | None = None
    maps: tf.Tensor | None = None
    values: dict[str, tf.Tensor] = field(default_factory=dict)
    noted: dict[str, tf.Tensor] = field(default_factory=dict)

    def again(self) -> Step:
        """The same batch without computed values."""
        return replace(self, values={}, noted={})


class Risk:
    """One term of eq. 6 beside the task loss."""

    name: str

    def weight(self, step: Step) -> tf.Tensor | float:
        """Factor of the value (zeta or eta), a scalar without a gradient."""
        raise NotImplementedError

    def value(self, step: Step) -> tf.Tensor:
        """The risk of this step before weighting, a scalar with a gradient."""
        raise NotImplementedError

    def weighted(self, step: Step) -> tf.Tensor:
        """Weight times value, a scalar; the value is noted in the step."""
        weight, value = self.weight(step), self.value(step)
        step.values[self.name] = value
        return weight * value

    def update(self, step: Step) -> None:
        """Changes the risk's state after the gradients have been applied."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Changes what depends on the progress of the search.

        Args:
            epoch: number of the epoch that begins, from 0.
            epochs: number of epochs of the whole search.
        """


def taken(tensors: Any, places: tf.Tensor | None) -> Any:
    """Rows of nested tensors [B, ...] at indices [A]; None: all rows, unchanged."""
    if places is None:
        return tensors
    return keras.tree.map_structure(
        lambda t: t if t is None else tf.gather(t, places), tensors
    )
