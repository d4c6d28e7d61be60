"""Default boxes (anchors) of single-shot detectors."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmpq_tf.detection.boxes import to_corners


class BoxError(ValueError):
    """Boxes, or the parameters they are made from, cannot be used."""


@dataclasses.dataclass(frozen=True)
class DefaultBoxes:
    """The default boxes of a detector, level by level (Liu et al., section 2.2).

    Each position of a level has, in this order: a square of side s, a square of side
    sqrt(s s'), and for each ratio r a box of width s sqrt(r) and height s / sqrt(r),
    and the same box with both exchanged. Sides are relative to the image, so "square"
    means square after the image has been stretched to a square. Boxes of a level are
    ordered (y, x, box).

    Args:
        feature_shapes: rows and columns of each level's feature map.
        sizes: (s, s') of each level, s' at least s, relative to the image, above 0.
        ratios: for each level width over height of the boxes that are not square, above
            0.
        variances: (v0, v1) of the offsets, see `boxes.encode`.
        steps: distance of two centres at each level, relative to the image, or
            (vertical, horizontal); None: 1 / rows, 1 / columns.
        clip: whether centres and sides are limited to 0..1, as in ports of the paper's
            code; corners may still lie outside.

    Raises:
        BoxError: the arguments have different numbers of levels, or a number is out of
            range.
    """

    feature_shapes: Sequence[Sequence[int]]
    sizes: Sequence[Sequence[float]]
    ratios: Sequence[Sequence[float]]
    variances: Sequence[float] = (0.1, 0.2)
    steps: Sequence[float | Sequence[float]] | None = None
    clip: bool = True

    def __post_init__(self) -> None:
        for name in ("feature_shapes", "sizes", "ratios", "variances", "steps"):
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        levels = len(self.feature_shapes)
        for name in ("sizes", "ratios", "steps"):
            value = getattr(self, name)
            if value is not None and len(value) != levels:
                raise _wrong(name, value, f"of {levels} levels, as feature_shapes")
        for rows_columns in self.feature_shapes:
            whole = all(isinstance(n, int) and n > 0 for n in rows_columns)
            if len(rows_columns) != 2 or not whole:
                raise _wrong("feature_shapes", self.feature_shapes, "pairs above 0")
        for pair in self.sizes:
            if len(pair) != 2 or not _positive(pair) or pair[1] < pair[0]:
                raise _wrong("sizes", self.sizes, "pairs (s, s'), 0 < s <= s'")
        if not all(_positive(ratios) for ratios in self.ratios):
            raise _wrong("ratios", self.ratios, "above 0")
        if len(self.variances) != 2 or not _positive(self.variances):
            raise _wrong("variances", self.variances, "two numbers above 0")
        if not levels:
            raise _wrong("feature_shapes", self.feature_shapes, "of a level or more")

    @property
    def boxes_per_place(self) -> tuple[int, ...]:
        """Number of boxes at each position, for each level."""
        return tuple(2 + 2 * len(ratios) for ratios in self.ratios)

    @property
    def count(self) -> int:
        """Number of all boxes N, over levels and positions."""
        places = map(math.prod, self.feature_shapes)
        return sum(p * a for p, a in zip(places, self.boxes_per_place, strict=True))

    def centers(self) -> np.ndarray:
        """Returns the boxes as (cy, cx, h, w): float32 [N, 4], in output order."""
        steps = self.steps or [(1 / r, 1 / c) for r, c in self.feature_shapes]
        levels = zip(self.feature_shapes, self.sizes, self.ratios, steps, strict=True)
        boxes = np.concatenate([_level(*level) for level in levels])
        return (np.clip(boxes, 0, 1) if self.clip else boxes).astype(np.float32)

    def corners(self) -> np.ndarray:
        """Returns the boxes as (ymin, xmin, ymax, xmax): float32 [N, 4], unclipped."""
        return to_corners(self.centers())

    def to_config(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values, for `from_config`."""
        return _lists(dataclasses.asdict(self))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DefaultBoxes:
        """Returns the boxes that `to_config` described."""
        return cls(**config)


def ssd_boxes(
    feature_shapes: Sequence[Sequence[int]],
    smallest: float = 0.1,
    scales: tuple[float, float] = (0.2, 0.9),
    ratios: Sequence[Sequence[float]] | None = None,
    variances: tuple[float, float] = (0.1, 0.2),
) -> DefaultBoxes:
    """Returns default boxes whose sizes rise linearly over levels (SSD's eq. 4).

    Args:
        feature_shapes: rows and columns of each level's feature map, finest first.
        smallest: size of the first level, relative to the image.
        scales: sizes of the second and of the last level, relative to the image.
        ratios: as in `DefaultBoxes`; None: 2 and 3 at each level.
        variances: as in `DefaultBoxes`.

    Returns:
        The boxes.
    """
    last, levels = scales[1], len(feature_shapes)
    rising = np.linspace(scales[0], last, levels - 1) if levels > 2 else [last]
    step = float(rising[-1] - rising[-2]) if levels > 2 else last - smallest
    sizes = [smallest, *(map(float, rising if levels > 1 else ())), last + step]
    sizes = sizes if levels > 1 else [smallest, last]
    pairs = list(itertools.pairwise(sizes))
    ratios = ratios or [(2.0, 3.0)] * levels
    return DefaultBoxes(feature_shapes, pairs, ratios, variances)


def _level(
    shape: Sequence[int], size: Sequence[float], ratios: Sequence[float], step: Any
) -> np.ndarray:
    """Returns a level as (cy, cx, h, w): float64 [rows * columns * boxes, 4]."""
    least, next_least = size
    sides = [(least, least), (math.sqrt(least * next_least),) * 2]
    for ratio in ratios:
        narrow, wide = least / math.sqrt(ratio), least * math.sqrt(ratio)
        sides += [(narrow, wide), (wide, narrow)]
    down, across = step if isinstance(step, (tuple, list)) else (step, step)
    y = (np.arange(shape[0]) + 0.5) * down
    x = (np.arange(shape[1]) + 0.5) * across
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)[:, :, None]
    whole = np.broadcast_to(grid, (*shape, len(sides), 2))
    high_wide = np.broadcast_to(np.array(sides), (*shape, len(sides), 2))
    return np.concatenate([whole, high_wide], axis=-1).reshape(-1, 4)


def _positive(numbers: Sequence[float]) -> bool:
    return all(math.isfinite(number) and number > 0 for number in numbers)


def _tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(part) for part in value)
    return value


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(part) for key, part in value.items()}
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def _wrong(name: str, value: Any, rule: str) -> BoxError:
    return BoxError(
        f"{name} of default boxes must be {rule}. Received: {name}={value!r:.200}. "
        "Give one of each for each level, as ssd_boxes() does."
    )
