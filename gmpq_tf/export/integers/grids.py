"""Activation grids, and how int8 tensors of a file hold them.

The b-bit grid comes from where zero is put: the largest code is stored as 127, so that
saturation clamps above, and a fused ReLU, or a second integer operator, clamps below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantization:
    """Meaning of stored integers: `value = scale * (stored - zero_point)`.

    Args:
        scale: one step, or one a channel.
        zero_point: stored integer of the value zero, the same for every channel.
        axis: the axis of the channels, where there are several steps.
    """

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(frozen=True)
class Grid:
    """An activation grid: `value = code * step`, `low <= code <= high`."""

    step: float
    low: int
    high: int

    @property
    def zero_point(self) -> int:
        """Stored integer of zero that makes int8 saturate at the largest code."""
        return 127 - self.high

    def has_room_below(self, zero_point: int) -> bool:
        """Whether int8 reaches below the smallest code."""
        return zero_point + self.low > -128

    def holds(self, other: Grid) -> bool:
        """Whether every value of `other` is on this grid."""
        same = self.step == other.step
        return same and self.low <= other.low and other.high <= self.high


@dataclass(frozen=True)
class Value:
    """A tensor of the file: on a grid in int8, or float where `grid` is None."""

    tensor: int
    grid: Grid | None
    zero_point: int = 0


def quantization(grid: Grid, zero_point: int | None = None) -> Quantization:
    """How a tensor on a grid is described in the file."""
    return Quantization(
        (grid.step,), grid.zero_point if zero_point is None else zero_point
    )


def grid_of(quantizer: Any) -> Grid:
    """Grid of an `InputQuantizer`."""
    low, high = quantizer.codes()
    return Grid(quantizer.step(), low, high)


def clamps(activation: str, grid: Grid) -> bool:
    """Whether a fused ReLU leaves nothing below the smallest code."""
    return activation != "linear" and grid.low <= 0
