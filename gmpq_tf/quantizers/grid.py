"""Integer grids: which codes a bit-width has, and which steps are allowed."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from gmpq_tf.policy import check_bits
from gmpq_tf.quantizers.straight_through import straight_through

# Bound of |log2(step)|: 2^24 products of two codes, times two such steps, add up to
# less than 2^128, so float32 does not overflow.
LOG2_LIMIT = 50.0
FLOAT16_STEPS = 2.0**-14, 2.0**8  # 1 / step and 255 * step stay finite in float16


def unsigned_limit(bits: int) -> int:
    """Largest code of an unsigned grid: `2^b - 1`; the smallest is 0."""
    return 2 ** check_bits("bits", bits) - 1


def symmetric_limit(bits: int) -> int:
    """Largest code of a symmetric grid: `2^(b-1) - 1`; the smallest is its negative.

    The code `-2^(b-1)` is left out so that `q(-x) = -q(x)`, as TFLite requires of
    kernels ("narrow range").
    """
    return 2 ** (check_bits("bits", bits) - 1) - 1


def code_limit(bits: int, signed: bool) -> int:
    """Largest code of an activation grid: `2^(b-1) - 1` if signed, else `2^b - 1`."""
    return symmetric_limit(bits) if signed else unsigned_limit(bits)


def lowest_code(bits: int, signed: bool) -> int:
    """Smallest code of an activation grid: `-2^(b-1)` if signed, else 0.

    Unlike a kernel's grid a signed activation's grid includes `-2^(b-1)`, as in LSQ:
    integer kernels saturate there anyway, at no cost.
    """
    return -(2 ** (check_bits("bits", bits) - 1)) if signed else 0


def bounded_power(log2: tf.Tensor, scale: Any = 1.0) -> tf.Tensor:
    """`2^log2`, kept within `2^-50 .. 2^50`; NaN stays NaN.

    Learned ranges and steps pass through it, so that neither they nor their reciprocals
    overflow, however far training moves the logarithm. Beyond the bound the gradient is
    that of `2^log2` at the bound, not 0, so that training can come back.

    Args:
        log2: logarithms to base 2 of ranges or steps, float of any shape.
        scale: the gradient is multiplied by this, as by `scale_gradient`; it broadcasts
            against the logarithms.

    Returns:
        Positive numbers of the same shape.
    """
    fixed = tf.stop_gradient(log2)
    bounded = tf.clip_by_value(fixed, -LOG2_LIMIT, LOG2_LIMIT)
    # In this order the value keeps every bit: what is added to it is exactly 0.
    return tf.exp((bounded + (log2 - fixed) * scale) * math.log(2.0))


def finite_step(step: tf.Tensor) -> tf.Tensor:
    """A step clipped to the range that float16 allows; unchanged in wider floats.

    Args:
        step: positive, of any shape.
    """
    if step.dtype != tf.float16:
        return step
    return tf.clip_by_value(step, *(tf.constant(s, step.dtype) for s in FLOAT16_STEPS))


def power_of_two(step: tf.Tensor) -> tf.Tensor:
    """Rounds a positive step to a power of two (in the logarithm); gradient 1.

    Two grids whose steps are powers of two nest: moving a tensor from one to the other
    in int8 is exact under XNNPACK.

    Args:
        step: positive, of any shape.

    Returns:
        Powers of two, of the same shape and type.
    """
    log2 = tf.math.log(tf.cast(step, tf.float32)) / math.log(2.0)
    # Built from its exponent bits: pow(2, n) is off by one unit on some back ends.
    exponent = tf.cast(tf.round(log2), tf.int32) + 127
    exact = tf.bitcast(tf.bitwise.left_shift(exponent, 23), tf.float32)
    return straight_through(tf.cast(exact, step.dtype), step)
