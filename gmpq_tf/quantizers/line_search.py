"""The step of least squared error, searched among fractions of the largest one.

The one place that says which fractions: `calibrate`, learned kernel steps and the first
batch of TFMOT's quantizers start from the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

# Activations have few large values, which a good step clips; kernels have none so far.
ACTIVATION_FRACTIONS = np.geomspace(0.02, 1.0, 60)
SILENT = 1e-8  # activations that are zero on every grid tried
KERNEL_FRACTIONS = np.linspace(0.2, 1.0, 81)


def least_error_step(
    steps: Iterable[np.ndarray], error_of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Of steps tried one after the other, the first of least error.

    Args:
        steps: scalars, or arrays of which each element is a search of its own.
        error_of: errors of steps, of their shape.
    """
    tried = list(steps)
    best, least = tried[-1], np.full(np.shape(tried[-1]), np.inf)
    for step in tried:
        error = error_of(step)
        best = np.where(error < least, step, best)
        least = np.minimum(error, least)
    return best
