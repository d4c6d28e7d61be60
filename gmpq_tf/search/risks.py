"""The risks that guide a search: what each weighs in a step, and its value.

A risk is an object with a `name`, a `weight(step)` and a `value(step)`, whose products
are added to the task loss (eq. 6). What it notes in the step is logged with them, and
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
    """What the risks of one training step are computed from.

    Args:
        images: what the hypernet sees, as the model takes it.
        labels: as `fit` was given them.
        branches: the importances.
        drawn: places of the images that are attributed, integers [A]; None: all.
        teacher_maps: of the float model, [A, H, W]; None without a teacher.
        maps: of the hypernet, [A, H, W]; None without a teacher.
        values: name of a risk -> its value, once it has been computed, a scalar.
        noted: name of another metric -> its value, likewise.
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
        """The same batch, of which no risk is known yet."""
        return replace(self, values={}, noted={})


class Risk:
    """One summand of eq. 6 beside the task loss."""

    name: str

    def weight(self, step: Step) -> tf.Tensor | float:
        """What the value is multiplied with, a scalar without a gradient."""
        raise NotImplementedError

    def value(self, step: Step) -> tf.Tensor:
        """The risk, a scalar."""
        raise NotImplementedError

    def weighted(self, step: Step) -> tf.Tensor:
        """Weight times value, a scalar; the value is noted in the step."""
        weight, value = self.weight(step), self.value(step)
        step.values[self.name] = value
        return weight * value

    def update(self, step: Step) -> None:
        """Change the state of the risk; the gradients have been applied."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Change what depends on how far the search is.

        Args:
            epoch: that begins, from 0.
            epochs: of the whole search.
        """


def taken(tensors: Any, places: tf.Tensor | None) -> Any:
    """Rows of tensors [B, ...], nested or None, at some places [A]; all for None."""
    if places is None:
        return tensors
    return keras.tree.map_structure(
        lambda t: t if t is None else tf.gather(t, places), tensors
    )
