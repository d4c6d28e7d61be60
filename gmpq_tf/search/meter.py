"""What a search costs, whatever it does: steps of float training, and seconds."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

# One step: forward, backward and update of the float model on so many images.
IMAGES_PER_STEP = 128
FORWARD = 1 / 3  # of a step


@dataclass(frozen=True)
class SearchCost:
    """What a search cost.

    Args:
        float_steps: training steps of the float model, of 128 images each, that take
            as much computing; a forward pass alone counts a third.
        seconds: of wall clock, those of an interrupted part included.
    """

    float_steps: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.float_steps:.4g} float-step equivalents (of {IMAGES_PER_STEP} "
            f"images), {self.seconds:.1f} s"
        )


class Meter:
    """Counts while a search runs."""

    def __init__(self) -> None:
        self.float_steps = 0.0
        self._started = perf_counter()
        self._earlier = 0.0

    def forward(self, images: int) -> None:
        """Count a forward pass."""
        self.float_steps += FORWARD * images / IMAGES_PER_STEP

    def training(self, images: int, steps: float = 1.0) -> None:
        """Count training steps, of `steps` float steps each, on `images` in all."""
        self.float_steps += steps * images / IMAGES_PER_STEP

    def replayed(self, float_steps: float, seconds: float) -> None:
        """Count what was done before an interruption."""
        self.float_steps += float_steps
        self._earlier += seconds

    @property
    def seconds(self) -> float:
        """Of wall clock, so far."""
        return self._earlier + perf_counter() - self._started

    def cost(self) -> SearchCost:
        """What it comes to, so far."""
        return SearchCost(self.float_steps, self.seconds)
