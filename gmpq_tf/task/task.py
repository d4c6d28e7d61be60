"""What every task says; classification.py and box_task.py hold the tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import keras


class Meter(Protocol):
    """Adds up batches of outputs and labels, and says how good they are."""

    def add(self, outputs: Any, labels: Any) -> None:
        """Adds a batch of outputs by name, and of labels as the data set has them."""

    def report(self) -> dict[str, float | None]:
        """Figures by name, 0 to 1, the task's headline among them."""


class Task:
    """What a model is trained for.

    Attributes:
        holds: what the labels of its data sets are: `"classes"` or `"boxes"`.
        headline: name of the figure that models are compared by, 0 to 1.
        of_images: what follows that figure in percent: "... the {} images".
        placewise: whether decisions are compared with labels one by one.
        deciding: number of the output that decides, in the order of `model.outputs`.
        encode: from the labels of a batch to what the losses take; None: as they are.
    """

    holds: ClassVar[str]
    headline: ClassVar[str]
    of_images: ClassVar[str]
    placewise: ClassVar[bool]
    deciding: int = 0
    encode: Callable[[Any], Any] | None = None

    def loss(self) -> Any:
        """What `compile` takes as its loss."""
        raise NotImplementedError

    def metrics(self) -> list[Any]:
        """What `compile` takes as its metrics."""
        raise NotImplementedError

    def check(self, class_names: Sequence[str]) -> None:
        """Refuses outputs that do not tell these classes apart.

        Raises:
            TaskError: how they do not.
        """
        raise NotImplementedError

    def measure(
        self, model: keras.Model, batches: Any, class_names: Sequence[str]
    ) -> dict[str, float]:
        """Figures of a compiled model, with the headline unless the images have none.

        Args:
            model: that is trained: of the task's outputs.
            batches: (images, labels as the data set has them).
            class_names: one a class.
        """
        raise NotImplementedError

    def meter(self, class_names: Sequence[str]) -> Meter | None:
        """What measures outputs by more than their decisions; None: they are all."""
        raise NotImplementedError
