"""A fractional bit-width, between its two neighbours (FracBits)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gmpq_tf.layers.relaxation_row import Grids, Relaxation


def between(bits: tf.Tensor, grids: Grids) -> tf.Tensor:
    """Weights of the two branches around a bit-width, so that their mean is it.

    `w_i = (b_(i+1) - b) / (b_(i+1) - b_i)` and `w_(i+1) = 1 - w_i` for
    `b_i <= b <= b_(i+1)`; below the first or above the last bit-width that branch
    alone.

    Args:
        bits: fractional bit-width `b`, a scalar.
        grids: bit-widths of the branches.

    Returns:
        [branches], with the sum 1.
    """
    known = np.array(grids.bits, "float32")
    gaps = np.diff(known)
    fewer = tf.concat([(known[1:] - bits) / gaps, [1.0]], 0)
    more = tf.concat([[1.0], (bits - known[:-1]) / gaps], 0)
    return tf.clip_by_value(tf.minimum(fewer, more), 0.0, 1.0)


def _weigh(
    importance: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None
) -> tf.Tensor:
    return between(_within(importance, grids), grids)


def _within(importance: tf.Tensor, grids: Grids) -> tf.Tensor:
    return tf.clip_by_value(importance[0], float(grids.bits[0]), float(grids.bits[-1]))


def _alone(values: np.ndarray, grids: Grids, index: int) -> np.ndarray:
    return np.array([float(grids.bits[index])])


def _at(grids: Grids, mean: float) -> np.ndarray:
    return np.array([float(mean)])


# The importance is the bit-width itself, [1]. Source: Yang and Jin, "FracBits", AAAI
# 2021. Unlike the paper the neighbours are candidates, which need not differ by one
# bit.
ADJACENT = Relaxation(
    _weigh, _weigh, shape=lambda _: (1,), alone=_alone, at=_at, start=0.5
)
