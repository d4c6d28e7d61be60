"""Rounds once, on the weighted mean of several grids (not the mean of roundings)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from gmpq_tf.quantizers.straight_through import straight_through


def expected_grid(
    x: tf.Tensor,
    steps: tf.Tensor,
    lows: tf.Tensor,
    highs: tf.Tensor,
    weights: tf.Tensor,
    rounded: Callable[[tf.Tensor], tf.Tensor],
    clip: bool = True,
    inside: bool = True,
) -> tf.Tensor:
    """`s min(max(round(x / s), lo), hi)` with `s = sum_b w_b s_b`.

    `lo = sum_b w_b s_b lo_b / s`, `hi` likewise; they need not be whole numbers. Where
    one weight is 1 and the others 0, this is the quantizer of that branch. `dq/dx = 1`
    inside and 0 outside; `dq/ds` is `round(v) - v` inside, with `v = x / s`; outside
    `q` is the expected bound, `sum_b w_b s_b hi_b`.

    Args:
        x: any shape.
        steps: positive, [branches, ...], each of which broadcasts against `x`.
        lows: smallest codes, [branches].
        highs: largest codes, [branches].
        weights: [branches]; or [2, branches], one row for the steps and one for the
            bounds. They sum to 1, unless they are meant to scale the grids too.
        rounded: rounds a tensor of any shape to whole numbers; its gradient is ignored.
        clip: False: `dq/dx = 1` everywhere, for steps that follow the largest value.
        inside: False: steps get no gradient from values inside, as in PACT; the weights
            still do.

    Returns:
        A tensor like `x`, differentiable any number of times.

    Source: Habi, Jennings and Netzer, "HMQ", ECCV 2020, section 3.2. Unlike the paper
    the steps of the branches are learned, and no noise is added to the weights.
    """
    column = [-1] + [1] * (len(steps.shape) - 1)
    each = tf.unstack(weights) if weights.shape.rank == 2 else [weights, weights]
    of_steps, of_bounds, lows, highs = (
        tf.reshape(v, column) for v in (*each, lows, highs)
    )
    within = steps if inside else tf.stop_gradient(steps)
    step = tf.reduce_sum(of_steps * within, 0)
    low = tf.reduce_sum(of_bounds * steps * lows, 0) / step
    high = tf.reduce_sum(of_bounds * steps * highs, 0) / step
    scaled = x * (1 / step)
    codes = tf.minimum(tf.maximum(rounded(scaled), low), high)
    slope = tf.minimum(tf.maximum(scaled, low), high) if clip else scaled
    return straight_through(codes, slope) * step


def check_one_rounding(row: Any, method: str, one_rounding: bool) -> bool:
    """Refuses one rounding for quantizers whose grids have no meaningful mean.

    Args:
        row: a row of `KERNEL_QUANTIZERS` or `INPUT_QUANTIZERS`.
        method: its name.
        one_rounding: whether one rounding is asked for.

    Returns:
        `one_rounding`.

    Raises:
        ValueError: one rounding is asked for, and the row draws codes or is not
            uniform.
    """
    if one_rounding and row.stochastic:
        raise ValueError(
            "One rounding on the mean of several grids rounds to the nearest code. "
            f"Received: the quantizer {method!r}, which draws codes in training. Take "
            "the relaxation 'sampled' or 'mixture', or another quantizer such as "
            "'lsq'."
        )
    if one_rounding and not row.uniform:
        raise ValueError(
            "One rounding on the mean of several grids needs grids of whole numbers "
            f"times a step. Received: the quantizer {method!r}, which has others. Take "
            "the relaxation 'sampled' or 'mixture', or another quantizer such as "
            "'lsq'."
        )
    return bool(one_rounding)
