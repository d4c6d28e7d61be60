"""Quantizer functions that a user registers: how they are called and checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from gmpq_tf.quantizers.grid import code_limit, lowest_code
from gmpq_tf.quantizers.mixture import steps_and_codes

TOLERANCE = 1e-3  # steps by which a value may miss its code
FRACTIONS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # no halves: any rounding of ties is allowed


def mixture(
    bits: tuple[int, ...],
    signed: bool | None,
    function: Callable[..., tf.Tensor],
    nested: bool,
    learn_range: bool,
) -> Callable[..., tf.Tensor]:
    """As `quantizers.mixture.mixture`, any shape, for `f(x, range, bits, signed)`.

    Where calibration places the zero (`signed=None`), the values are shifted so that
    the grid becomes an unsigned one, and shifted back.
    """

    def term(
        x: tf.Tensor,
        input_range: tf.Tensor,
        zero: tf.Tensor,
        step: tf.Tensor,
        width: int,
    ) -> tf.Tensor:
        if nested:
            limit = code_limit(width, bool(signed))
            input_range = step * tf.cast(limit, step.dtype)
        if not learn_range:
            input_range = tf.stop_gradient(input_range)
        if signed is not None:
            return function(x, input_range, width, signed)
        shift = tf.stop_gradient(zero * step)
        return function(x + shift, input_range, width, False) - shift

    def call(
        x: tf.Tensor, ranges: tf.Tensor, zeros: tf.Tensor, probabilities: tf.Tensor
    ) -> tf.Tensor:
        steps, *_ = steps_and_codes(ranges, zeros, bits, signed, nested)
        terms = [term(x, ranges[j], zeros[j], steps[j], b) for j, b in enumerate(bits)]
        return weighted(terms, probabilities)

    return call


def weighted(terms: Sequence[tf.Tensor], weights: tf.Tensor) -> tf.Tensor:
    """`sum_j w_j terms[j]`, of the shape of a term; a single term has weight 1."""
    if len(terms) == 1:
        return terms[0]
    return tf.add_n([w * t for w, t in zip(tf.unstack(weights), terms, strict=True)])


def takes_step(function: Callable) -> bool:
    """Whether a kernel quantizer has an argument `step`, which is then learned."""
    return "step" in inspect.signature(function).parameters


def check_input_quantizer(
    function: Callable, method: str, bits: Sequence[int], signed: bool
) -> bool:
    """Tries a registered activation quantizer on a few values of each bit-width.

    Returns:
        Whether it rounds each value to the nearest code, as integer kernels do.

    Raises:
        ValueError: it cannot be called, or returns another shape.
    """
    takes = "(x, input_range, bits, signed)"
    nearest = True
    for width in bits:
        low, high = lowest_code(width, signed), code_limit(width, signed)
        values, codes = _around(low, high)
        limit = tf.constant(high, tf.float32)
        found = _try(function, method, takes, values, limit, width, signed)
        nearest &= bool(np.all(np.abs(found - codes) < TOLERANCE))
    return nearest


def check_kernel_quantizer(
    function: Callable,
    method: str,
    bits: Sequence[int],
    limits: Sequence[int],
    learned: bool,
) -> bool:
    """Tries a registered kernel quantizer on a few values of each bit-width.

    Args:
        function: `(kernel, step, bits)` if its steps are learned, else
            `(kernel, bits, axes)`.
        method: its name.
        bits: bit-widths to try.
        limits: largest code of each bit-width.
        learned: whether steps are learned.

    Returns:
        Whether its values are whole multiples of a step.

    Raises:
        ValueError: it cannot be called, or returns another shape.
    """
    whole = True
    arguments: tuple[object, ...]
    for width, limit in zip(bits, limits, strict=True):
        values, _ = _around(-limit, limit)
        if learned:
            takes, arguments = "(kernel, step, bits)", (tf.ones([1, 1]), width)
        else:
            takes, arguments = "(kernel, bits, axes)", (width, (0,))
        found = _try(function, method, takes, values[:, None], *arguments)
        steps = np.ones(1) if learned else _steps(found, limit, (0,))
        whole &= bool(np.isfinite(steps).all() and _on_grid(found, steps, limit))
    return whole


def steps_of(values: np.ndarray, limit: int, axes: Sequence[int]) -> np.ndarray:
    """The largest steps of which quantized values are whole multiples.

    Args:
        values: quantized kernel, any shape.
        limit: largest code.
        axes: axes that share a step.

    Returns:
        Steps of the kernel's shape, with size 1 along `axes`.

    Raises:
        ValueError: there is no such step.
    """
    steps = _steps(values, limit, axes)
    if not np.isfinite(steps).all():
        raise ValueError(
            "A quantized kernel must hold whole multiples of a step. "
            f"Received: values that are none of a step with {limit} codes on each side "
            "of zero. Return code * step, with one step along `axes`."
        )
    return steps


def codes_of(
    values: np.ndarray, steps: np.ndarray, limit: int, method: str
) -> np.ndarray:
    """Integer codes of quantized values, int8 of their shape.

    Raises:
        ValueError: they are not multiples of the steps, or leave the grid.
    """
    if not _on_grid(values, steps, limit):
        raise ValueError(
            "A kernel quantizer must return code * step to be stored in integers. "
            f"Received: method={method!r}, with other values or codes beyond {limit}. "
            "Change the function, or export with another method."
        )
    return np.round(values / steps).astype("int8")


def _around(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Values on, between and beyond the codes of a grid of step 1, and their codes."""
    whole: np.ndarray = np.arange(low - 2, high + 3, dtype="float32")
    values = np.add.outer(whole, np.float32(FRACTIONS)).ravel()
    return values, np.clip(np.round(values), low, high)


def _try(
    function: Callable, method: str, takes: str, values: np.ndarray, *arguments: object
) -> np.ndarray:
    try:
        with tf.init_scope():
            found = np.asarray(function(tf.constant(values), *arguments))
    except Exception as error:
        raise ValueError(
            f"A registered quantizer must be a function of {takes} that returns a "
            f"tensor. Received: method={method!r}, which fails: {error}. "
            "Take these arguments, in this order."
        ) from error
    if found.shape != values.shape:
        raise ValueError(
            "A registered quantizer must return a tensor of the shape it was given. "
            f"Received: method={method!r}, which returns {found.shape} for "
            f"{values.shape}."
        )
    return found


def _on_grid(values: np.ndarray, steps: np.ndarray, limit: int) -> bool:
    scaled = values / steps
    codes = np.round(scaled)
    near = np.abs(scaled - codes) < TOLERANCE
    return bool(near.all() and (np.abs(codes) <= limit).all())


def _steps(values: np.ndarray, limit: int, axes: Sequence[int]) -> np.ndarray:
    """As `steps_of`, with infinity where there is no such step."""
    axes = tuple(axes)
    largest = np.abs(values).max(axis=axes, keepdims=True)
    steps = np.where(largest > 0, np.inf, np.float32(1e-6) / limit)
    for code in range(1, limit + 1):  # assume it is the code of the largest value
        step = np.maximum(largest, 1e-30) / code
        scaled = values / step
        missed = np.abs(scaled - np.round(scaled)).max(axis=axes, keepdims=True)
        steps = np.where(np.isinf(steps) & (missed < TOLERANCE), step, steps)
    return steps.astype("float32")
