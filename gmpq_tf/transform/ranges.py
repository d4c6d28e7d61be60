"""Methods that choose the step of an activation grid from the values seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gmpq_tf.quantizers.line_search import ACTIVATION_FRACTIONS
from gmpq_tf.spelling import lookup

HISTOGRAM_BINS = 2048
ENTROPY_THRESHOLDS = 128
TINY = 1e-12


@dataclass(frozen=True)
class SeenValues:
    """What calibration knows about a tensor whose zero is code 0.

    Args:
        values: a sample of its values, with the largest: float32 [n].
        largest: the largest magnitude, positive; a grid up to here clips nothing.
        limit: largest code; codes go from 0 or from `-limit - 1` to it.
        power_of_two: whether the step must be a power of two.
        fit: steps [k] -> the one of least squared error on the values (of equally good
            ones the first).
    """

    values: np.ndarray
    largest: float
    limit: int
    power_of_two: bool
    fit: Callable[[np.ndarray], float]

    def step_of(self, threshold: float) -> float:
        """The step whose largest code stands for `threshold`.

        Rounded to the nearest power of two where the grid needs one.
        """
        step = threshold / self.limit
        return float(2.0 ** np.round(np.log2(step)) if self.power_of_two else step)


# A method: the values seen -> the step of the activation grid.
RangeMethod = Callable[[SeenValues], float]


def squared_error(seen: SeenValues) -> float:
    """`argmin_s sum_x (q_s(x) - x)^2` over 60 fractions of the largest value.

    Powers of two are those next above, so that one of them clips nothing.
    """
    steps = seen.largest * ACTIVATION_FRACTIONS / seen.limit
    if seen.power_of_two:
        steps = np.unique(2.0 ** np.ceil(np.log2(steps)))
    return seen.fit(steps)


def largest_value(seen: SeenValues) -> float:
    """`s = max |x| / limit`; only a power of two rounded down clips values."""
    return seen.step_of(seen.largest)


@dataclass(frozen=True)
class Percentile:
    """`s = P_p(|x|) / limit`: the largest values are clipped.

    Where more than `percent` of the values are zero, the largest value is used.

    Args:
        percent: percentage of values that are not clipped, above 0, at most 100.

    Raises:
        ValueError: the percentage is outside this range.

    Source: Wu et al., "Integer Quantization for Deep Learning Inference", 2020, 3.3.
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise ValueError(
                "A percentile must be above 0 and at most 100. "
                f"Received: percent={self.percent!r}. Pass such as 99.99."
            )

    def __call__(self, seen: SeenValues) -> float:
        """The step for the values seen."""
        found = float(np.percentile(np.abs(seen.values), self.percent))
        return seen.step_of(found if found > TINY else seen.largest)


def entropy(seen: SeenValues) -> float:
    """`argmin_T KL(P || Q_T)` over 128 thresholds T of a histogram of |x|.

    P is the histogram up to T, with the values above T added to its last bin. Q_T has
    the values up to T, summed in as many groups as there are codes; each sum is spread
    evenly over the bins of its group that are not empty in P.
    Unlike the source values that are exactly zero, as ReLU makes them, do not count:
    every grid holds them. Where Q is 0 and P is not, Q counts as a small constant.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    sizes = np.abs(seen.values)
    sizes = sizes[sizes > 0]
    if not sizes.size:
        return seen.step_of(seen.largest)
    edge = float(sizes.max())
    counts = np.histogram(sizes, HISTOGRAM_BINS, (0.0, edge))[0].astype("float64")
    levels = seen.limit + 1
    first = min(max(levels, HISTOGRAM_BINS // 50), HISTOGRAM_BINS)
    kept = np.unique(np.linspace(first, HISTOGRAM_BINS, ENTROPY_THRESHOLDS).astype(int))
    best = min(kept, key=lambda bins: divergence(counts, int(bins), levels))
    return seen.step_of((best / HISTOGRAM_BINS) * edge)


def divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """`KL(P || Q)` of a histogram clipped at a bin, see `entropy`.

    Args:
        counts: number of values in each bin, [n].
        kept: number of bins below the threshold, 1 to n.
        levels: number of codes that these bins are grouped to.
    """
    inside = counts[:kept]
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    group: np.ndarray = np.arange(kept) * levels // kept
    filled = clipped > 0
    total = np.bincount(group, inside, levels)
    sharing = np.bincount(group, filled, levels)
    spread = np.where(filled, total[group] / np.maximum(sharing, 1)[group], 0.0)
    if not spread.sum():
        return float("inf")
    p = clipped[filled] / clipped.sum()
    q = np.maximum(spread[filled] / spread.sum(), TINY)
    return float(np.sum(p * np.log(p / q)))


# To add a method, write a function or a callable object, and add a line here.
RANGE_METHODS: dict[str, RangeMethod] = {
    "squared_error": squared_error,
    "max": largest_value,
    "percentile": Percentile(),
    "entropy": entropy,
}
DEFAULT_RANGE_METHOD = "squared_error"


def range_method(method: str | RangeMethod) -> RangeMethod:
    """The row of `RANGE_METHODS` with a name; a callable is returned unchanged.

    Raises:
        ValueError: an unknown name; the nearest is given.
    """
    if callable(method):
        return method
    return lookup(RANGE_METHODS, method, "calibration method")
