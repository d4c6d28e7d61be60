"""Activation grids, and how int8 tensors of a file represent them.

TFLite only has int8 tensors. A grid of fewer bits is made by its zero point: the
largest code is stored as 127, so that the saturation of int8 clamps above, and a fused
ReLU, or a second integer operator, clamps below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantization:
    """Meaning of stored integers: `value = scale * (stored - zero_point)`.

    Args:
        scale: one step, or one for each channel.
        zero_point: the stored integer of the value 0, the same for every channel.
        axis: axis of the channels, if there are several steps.
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
        """The stored integer of 0 for which the largest code is stored as 127."""
        return 127 - self.high

    def has_room_below(self, zero_point: int) -> bool:
        """Whether int8 can hold integers below the smallest code."""
        return zero_point + self.low > -128

    def holds(self, other: Grid) -> bool:
        """Whether every value of `other` is on this grid."""
        same = self.step == other.step
        return same and self.low <= other.low and other.high <= self.high


@dataclass(frozen=True)
class Value:
    """A tensor of the file: int8 on a grid, or float where `grid` is None.

    Args:
        tensor: number of the tensor in the file.
        grid: grid of its values.
        zero_point: the stored integer of the value 0.
    """

    tensor: int
    grid: Grid | None
    zero_point: int = 0


def quantization(grid: Grid, zero_point: int | None = None) -> Quantization:
    """Quantization parameters of a tensor on a grid; None: the grid's zero point."""
    return Quantization(
        (grid.step,), grid.zero_point if zero_point is None else zero_point
    )


def grid_of(quantizer: Any) -> Grid:
    """The grid of an `InputQuantizer` with one branch."""
    low, high = quantizer.codes()
    return Grid(quantizer.step(), low, high)


def clamps(activation: str, grid: Grid) -> bool:
    """Whether a fused ReLU keeps results at or above the smallest code."""
    return activation != "linear" and grid.low <= 0
