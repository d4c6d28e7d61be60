"""The cost of a search, in equivalent steps of float training and in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

# Images in one step: forward, backward and update of the float model.
IMAGES_PER_STEP = 128
FORWARD = 1 / 3  # cost of a forward pass, in steps


@dataclass(frozen=True)
class SearchCost:
    """The cost of a search.

    Args:
        float_steps: number of training steps of the float model, on 128 images each,
            that need the same computing; a forward pass counts as a third of a step.
        seconds: wall clock time, including that of interrupted runs.
    """

    float_steps: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.float_steps:.4g} float-step equivalents (of {IMAGES_PER_STEP} "
            f"images), {self.seconds:.1f} s"
        )


class Meter:
    """Counts the cost of a search while it runs."""

    def __init__(self) -> None:
        self.float_steps = 0.0
        self._started = perf_counter()
        self._earlier = 0.0

    def forward(self, images: int) -> None:
        """Counts a forward pass over a number of images."""
        self.float_steps += FORWARD * images / IMAGES_PER_STEP

    def training(self, images: int, steps: float = 1.0) -> None:
        """Counts training steps, of `steps` float steps each, on `images` in all."""
        self.float_steps += steps * images / IMAGES_PER_STEP

    def replayed(self, float_steps: float, seconds: float) -> None:
        """Counts the cost of work that was done before an interruption."""
        self.float_steps += float_steps
        self._earlier += seconds

    @property
    def seconds(self) -> float:
        """Wall clock time so far, including that of interrupted runs."""
        return self._earlier + perf_counter() - self._started

    def cost(self) -> SearchCost:
        """Returns the cost counted so far, in float-training steps and seconds."""
        return SearchCost(self.float_steps, self.seconds)
