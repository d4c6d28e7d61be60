"""Dense layers of a classifier as convolutions of a detector, with fewer weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def dense_as_conv(
    kernel: np.ndarray, bias: np.ndarray, shape: Sequence[int]
) -> list[np.ndarray] | None:
    """Subsamples the kernel of a dense layer to that of a convolution.

    A dense layer behind a feature map is a convolution with a kernel as large as the
    map. Its rows, columns, inputs and outputs are subsampled at equal steps. Of
    7 x 7 x 512 x 4096 every third row and column and every fourth output give
    3 x 3 x 512 x 1024, with a dilation three times as large; of 4096 x 4096 every
    fourth input and output give 1 x 1 x 1024 x 1024.

    Args:
        kernel: [inputs, units]; the inputs of a feature map in the order row, column,
            channel.
        bias: [units].
        shape: shape of the convolution's kernel: rows, columns, channels, filters.

    Returns:
        Kernel and bias; None where no equal steps give that shape.

    Source: Liu et al., "SSD", section 3, after Chen et al., "DeepLab", ICLR 2015.
    """
    rows, columns, channels, filters = shape
    inputs, units = kernel.shape
    side = 1 if (rows, columns) == (1, 1) else math.isqrt(inputs // channels)
    if not side or inputs % side**2:
        return None
    whole = kernel.reshape(side, side, -1, units)
    steps = [
        (side - 1) // (rows - 1) if rows > 1 else 1,
        (side - 1) // (columns - 1) if columns > 1 else 1,
        whole.shape[2] // channels,
        units // filters,
    ]
    if 0 in steps:
        return None
    kept = whole[:: steps[0], :: steps[1], :: steps[2], :: steps[3]]
    if kept.shape != tuple(shape):
        return None
    return [np.ascontiguousarray(kept), bias[:: steps[3]]]
