"""Learns a step and a range, from which the bit-width follows (DQ)."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from gmpq_tf.layers.fractional import between
from gmpq_tf.layers.relaxation_row import Grids, Relaxation
from gmpq_tf.quantizers.straight_through import straight_through

MARGIN = 1e-3  # distance, in bits, of expected bits from the fewest and the most bits


def _weigh(
    importance: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None
) -> tf.Tensor:
    """Weights of steps and ranges, [2, branches]: they scale the widest branch's grid.

    The importances are `log2 d` and `log2 x_max`, relative to the step and the range of
    the widest branch; the weights make its step `d` and its range `x_max`. Values
    outside the range have no gradient for the step, values inside none for the range.
    """
    most = math.log2(grids.codes[-1])
    step = most + importance[1] - _log2_codes(importance, grids)
    widest: np.ndarray = np.eye(len(grids.bits), dtype="float32")[-1]
    return 2.0 ** tf.stack([step, importance[1]])[:, None] * widest


def _log2_codes(importance: tf.Tensor, grids: Grids) -> tf.Tensor:
    """`log2(x_max / d)`, clipped to the candidates' largest codes; gradient 1."""
    logs = math.log2(grids.codes[-1]) + importance[1] - importance[0]
    low, high = math.log2(grids.codes[0]), math.log2(grids.codes[-1])
    return straight_through(tf.clip_by_value(logs, low, high), logs)


def smooth_bits(importance: tf.Tensor, grids: Grids) -> tf.Tensor:
    """`b = log2(x_max / d + 1)`, a scalar; one more for grids with a sign."""
    ratio = 2.0 ** _log2_codes(importance, grids)
    more = tf.math.log((ratio + 1) / (grids.codes[-1] + 1)) / math.log(2.0)
    return grids.bits[-1] + more


def _distribute(importance: tf.Tensor, grids: Grids) -> tf.Tensor:
    bits = smooth_bits(importance, grids)
    ends = grids.bits[0] + MARGIN, grids.bits[-1] - MARGIN
    return between(straight_through(tf.clip_by_value(bits, *ends), bits), grids)


def _alone(values: np.ndarray, grids: Grids, index: int) -> np.ndarray:
    """Importances [2] of one bit-width, with the same range and the step it implies."""
    ratio = math.log2(grids.codes[-1] / grids.codes[index])
    return np.array([values[1] + ratio, values[1]])


def _at(grids: Grids, mean: float) -> np.ndarray:
    codes = 2.0 ** (mean - grids.bits[-1]) * (grids.codes[-1] + 1) - 1
    return np.array([math.log2(grids.codes[-1] / codes), 0.0])


# Source: Uhlich et al., "Mixed Precision DNNs: All you need is a good parametrization",
# ICLR 2020, parametrization U3. Unlike the paper bits stay within the candidates, steps
# and ranges are not powers of two, and values beyond the range become the range itself.
LEARNED_GRID = Relaxation(
    _weigh,
    _distribute,
    one_rounding=True,
    shape=lambda _: (2,),
    alone=_alone,
    at=_at,
    start=0.95,
)
