"""The step of least squared error, searched among fractions of the largest one.

The fractions are defined here only: `calibrate`, learned kernel steps and the first
batch of TFMOT's quantizers use the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

# A good step may clip the few large values of activations, so small fractions are
# tried; kernels have no such outliers.
ACTIVATION_FRACTIONS = np.geomspace(0.02, 1.0, 60)
SILENT = 1e-8  # activations below this are zero on every grid tried
KERNEL_FRACTIONS = np.linspace(0.2, 1.0, 81)

# Codes nearest to weights in units of a step, written to the second argument.
Nearest = Callable[[np.ndarray, np.ndarray], np.ndarray]


def least_error_step(
    steps: Iterable[np.ndarray], error_of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The step of least error; of equally good ones the first.

    Args:
        steps: scalars; or arrays [...], whose elements are searched independently.
        error_of: a step -> its error, of the same shape.

    Returns:
        The best step, of the shape of a step.
    """
    tried = list(steps)
    best, least = tried[-1], np.full(np.shape(tried[-1]), np.inf)
    for step in tried:
        error = error_of(step)
        best = np.where(error < least, step, best)
        least = np.minimum(error, least)
    return best


def least_error_steps(columns: np.ndarray, limit: int, nearest: Nearest) -> np.ndarray:
    """The step of least squared error of each column.

    `argmin_s sum_i (nearest(w_i / s) s - w_i)^2` over `KERNEL_FRACTIONS` of the step
    that clips nothing. The result is bit for bit that of trying all 81 in float64: a
    first pass in float32, whose error is bounded, rules out all but one or two
    fractions a column, and float64 decides among those.

    Args:
        columns: finite weights, float32 [rows, columns].
        limit: largest code.
        nearest: rounds values in steps to codes, which are symmetric around zero.

    Returns:
        Positive steps, float64 [columns].
    """
    largest = np.maximum(np.abs(columns).max(axis=0), np.float32(1e-6))
    base = largest / limit
    norms, slack = _error_norms(np.abs(columns) / largest, limit, nearest)
    near = norms - slack <= (norms + slack).min(axis=0)
    best, least = base * KERNEL_FRACTIONS[-1], np.full(len(base), np.inf)
    for fraction, chosen in zip(KERNEL_FRACTIONS, near, strict=True):
        (where,) = np.nonzero(chosen)
        if not where.size:
            continue
        if where.size == 1 < len(base):
            where = np.repeat(where, 2)  # NumPy sums a lone column in another order
        kept = np.take(columns, where, axis=1)
        steps = base[where] * fraction
        scaled = kept / steps
        error = nearest(scaled, scaled) * steps - kept
        total = np.square(error).sum(axis=0)
        better = total < least[where]
        best[where] = np.where(better, steps, best[where])
        least[where] = np.where(better, total, least[where])
    return best


def _error_norms(
    sizes: np.ndarray, limit: int, nearest: Nearest
) -> tuple[np.ndarray, np.ndarray]:
    """Norm of each column's error at each fraction, and a bound of its inaccuracy.

    Args:
        sizes: absolute weights over the largest of their column, float32
            [rows, columns].
        limit: largest code.
        nearest: as in `least_error_steps`.

    Returns:
        Two float64 arrays [fractions, columns], in units of the largest weight.
    """
    rows, count = sizes.shape
    scaled, codes = np.empty_like(sizes), np.empty_like(sizes)
    norms: np.ndarray = np.empty((len(KERNEL_FRACTIONS), count))
    for i, fraction in enumerate(KERNEL_FRACTIONS):
        np.multiply(sizes, np.float32(limit / fraction), out=scaled)
        np.subtract(scaled, nearest(scaled, codes), out=scaled)
        np.square(scaled, out=scaled)
        norms[i] = np.sqrt(scaled.sum(axis=0), dtype="float64") * (fraction / limit)
    # What may be wrong: the distance to the nearest code changes by at most as much as
    # the scaled weight, which is rounded three times; the sum rounds once a row (one
    # column alone NumPy adds in pairs, in fewer roundings); and the squares of small
    # distances may underflow float32.
    unit, added = 2.0**-24, rows if count > 1 else 64
    size = np.sqrt(np.square(sizes, dtype="float64").sum(axis=0))
    return norms, unit * (4 * size + added * norms) + 2.0**-60 * rows**0.5
