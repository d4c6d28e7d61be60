"""Folds BatchNormalization into integer kernels without moving a code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmpq_tf.export.errors import ExportError
from gmpq_tf.graph import Call, Ref
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.transform.gates import curve
from gmpq_tf.transform.snap import AFFINE_CODE

BIAS_LIMIT = 2**30  # leaves room for the products in a 32-bit accumulator
AVERAGE_CODE = 7  # the largest code that INT4 has on both sides of zero
EPSILON = 1e-7  # least standard deviation, as in keras.layers.Normalization


@dataclass(frozen=True)
class Folded:
    """A layer as TFLite stores it; channels are output channels.

    Args:
        codes: kernel codes in the layout of Keras, int8.
        signs: -1, 0 or 1, [C]: stored codes = trained codes * sign * factor.
        factor: factor of the stored codes; 1 unless codes are scaled.
        scale: positive kernel steps, [C].
        bias: int32 [C], in units of `input step * scale`.
        slack: largest change of an output by rounding biases, in output steps; 0 after
            `snap_biases`.
        loose: mean change of biases that are not 0 by rounding, in units; about 0.25 if
            they were never rounded before.
    """

    codes: np.ndarray
    signs: np.ndarray
    factor: int
    scale: np.ndarray
    bias: np.ndarray
    slack: float
    loose: float


def trained_codes(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Kernel codes, int8 in the layout of Keras, and the step of each channel, [C]."""
    kernel = np.asarray(layer.kernel)
    quantizer = layer.kernel_quantizer
    step = np.broadcast_to(quantizer.step(kernel), kernel.shape)
    first = KERNEL_KINDS[layer.searchable_kind].columns(step)[0]
    return quantizer.codes(kernel), first.astype("float64")


def normalization(layer: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset, [C] each, of a BatchNormalization in inference: `f x + o`.

    `f = gamma / sqrt(variance + epsilon)`, `o = beta - mean f`; Ioffe and Szegedy,
    "Batch Normalization", 2015, algorithm 2.
    """
    ones, zeros = np.ones(channels), np.zeros(channels)
    gamma = _array(layer.gamma, ones) if layer.scale else ones
    beta = _array(layer.beta, zeros) if layer.center else zeros
    variance = _array(layer.moving_variance, ones)
    factor = gamma / np.sqrt(variance + layer.epsilon)
    return factor, beta - _array(layer.moving_mean, zeros) * factor


def affine_of(call: Call, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Factor f and offset o, [channels] each, of a call that computes `f x + o`.

    Raises:
        ExportError: they differ between pixels.
    """
    factor, offset = AFFINE[curve(call) or call.kind](call, channels)
    shapes = {np.shape(v)[:-1] for v in (factor, offset)}
    sizes = {np.shape(v)[-1] if np.ndim(v) else 1 for v in (factor, offset)}
    if any(math.prod(shape) > 1 for shape in shapes) or not sizes <= {1, channels}:
        raise ExportError(
            "Scaling must be the same for every pixel. "
            f"Received: layer={call.name!r} with factors and offsets of shapes "
            f"{np.shape(factor)} and {np.shape(offset)}. Use one number a channel."
        )
    factor, offset = (np.ravel(np.asarray(v, "float64")) for v in (factor, offset))
    return np.broadcast_to(factor, channels), np.broadcast_to(offset, channels)


def _standardization(call: Call, channels: int) -> tuple[Any, Any]:
    """Factor and offset of Normalization: `(x - mean) / sigma`, or its inverse."""
    layer = call.layer
    mean = np.asarray(layer.mean, "float64")
    sigma = np.maximum(np.sqrt(np.asarray(layer.variance, "float64")), EPSILON)
    return (sigma, mean) if layer.invert else (1 / sigma, -mean / sigma)


def _constant(call: Call, channels: int) -> tuple[Any, Any]:
    """Factor and offset of an operation between a tensor and a constant."""
    first = isinstance(call.args[0], Ref)
    number = np.asarray(call.args[1 if first else 0], "float64")
    ones = np.ones_like(number)
    if call.kind == "Add":
        return ones, number
    if call.kind == "Subtract":
        return (ones, -number) if first else (-ones, number)
    if call.kind == "Multiply":
        return number, 0 * ones
    if first:
        return 1 / number, 0 * ones
    raise ExportError(
        "A constant cannot be divided by a tensor in integers. "
        f"Received: layer={call.name!r}. Take the division out of the model."
    )


AFFINE: dict[str, Callable[[Call, int], tuple[Any, Any]]] = {
    "BatchNormalization": lambda call, channels: normalization(call.layer, channels),
    "Rescaling": lambda call, channels: (call.layer.scale, call.layer.offset),
    "Normalization": _standardization,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Divide", "TrueDivide"), _constant),
    "hard_sigmoid": lambda call, channels: (1 / 6, 0.5),
}


def fold_layer(
    layer: Any,
    batch_norm: Any | None,
    input_step: float,
    output_step: float,
    largest_code: int | None = None,
) -> Folded:
    """Kernel and bias of a quantized layer with the BatchNormalization after it.

    With BatchNormalization `f x + o`: `scale = step |f|` and `bias = f b + o`; a
    negative `f` negates the channel's codes. So the codes stay those that were trained.

    Args:
        layer: a Quant layer, whose kernel has codes times `step`.
        batch_norm: the BatchNormalization that follows, or None.
        input_step: step of the layer's input.
        output_step: step of the tensor that the layer writes.
        largest_code: multiply codes by the largest power of two that keeps them within
            this (and divide their step by it); None: codes are the trained ones.

    Raises:
        ExportError: weights are not finite, or exceed 32-bit accumulators.
    """
    codes, step = trained_codes(layer)
    multiple = 1
    if largest_code is not None:
        own = layer.kernel_quantizer.largest_code()
        multiple = 2 ** int(math.log2(largest_code // own))
    codes, step = codes * np.int8(multiple), step / multiple
    channels = step.size
    factor, offset = np.ones(channels), np.zeros(channels)
    if batch_norm is not None:
        factor, offset = normalization(batch_norm, channels)
    bias = offset + (
        np.asarray(layer.bias, "float64") * factor if layer.use_bias else 0
    )
    _check_finite(layer.name, step, factor, bias)
    scale = step * np.abs(factor)
    kind = KERNEL_KINDS[layer.searchable_kind]
    columns = kind.columns(codes)
    reach = np.abs(columns.astype("int64")).sum(axis=0) * 255
    constant = _constant_channels(
        layer.name, scale, bias, reach, input_step, output_step
    )
    scale = np.where(constant, output_step / input_step / 1024, scale)
    signs = np.where(constant, 0, np.where(factor < 0, -1, 1)).astype("int8")
    signed = kind.from_columns(columns * signs, codes.shape)
    unit = scale * input_step
    stored = bias_codes(bias, unit)
    moved = np.abs(stored * unit - bias)
    slack = float(np.max(moved) / output_step)
    free = (bias != 0) & ~constant
    loose = float(np.mean(moved[free] / unit[free])) if free.any() else 0.0
    return Folded(signed, signs, multiple, scale, stored, slack, loose)


def bias_codes(bias: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """`bias / unit` rounded to int32 [C], saturated to the accumulator's range."""
    codes = np.round(np.asarray(bias, "float64") / unit)
    return np.clip(codes, -BIAS_LIMIT, BIAS_LIMIT).astype("int32")


def affine(
    factor: np.ndarray, offset: np.ndarray, input_step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`f x + o` as a 1x1 depthwise kernel: codes, scale and bias, [C] each.

    Any code can represent f, with the step `|f| / code`. Among the codes 64 to 127 the
    one is taken that brings `o` nearest to a whole number of accumulator units.

    Args:
        factor: `f`, [C].
        offset: `o`, [C].
        input_step: step of `x`.
    """
    live = np.abs(factor) > 1e-12
    size = np.where(live, np.abs(factor), 1.0)
    choices = np.arange(AFFINE_CODE, AFFINE_CODE // 2, -1)[:, None]
    units = offset * choices / (size * input_step)
    code = choices[np.argmin(np.abs(units - np.round(units)), axis=0), 0]
    scale = size / code
    codes = np.where(live, np.sign(factor), 0) * code
    return codes.astype("int8"), scale, bias_codes(offset, scale * input_step)


def _constant_channels(
    name: str,
    scale: np.ndarray,
    bias: np.ndarray,
    reach: np.ndarray,
    input_step: float,
    output_step: float,
) -> np.ndarray:
    """Marks channels whose factor is too small to change the output: bool [C]."""
    unit = scale * input_step
    overflow = (unit == 0) | (np.abs(bias) > BIAS_LIMIT * unit)
    wrong = overflow & (unit * reach >= output_step / 2)
    if wrong.any():
        channel = int(np.flatnonzero(wrong)[0])
        raise ExportError(
            "A bias must fit the 32-bit accumulator of its layer. "
            f"Received: layer={name!r}, channel={channel}, "
            f"bias={bias[channel]:.3g} in steps of {unit[channel]:.3g}. "
            "Its inputs, or the scale of its BatchNormalization, have all but "
            "vanished: train the float model first, and fine-tune with a lower "
            "learning rate and no weight decay on gamma."
        )
    return overflow


def _check_finite(name: str, *values: np.ndarray) -> None:
    if not all(np.isfinite(v).all() for v in values):
        raise ExportError(
            "Weights must be finite. "
            f"Received: layer={name!r} with NaN or infinity in its kernel step, bias "
            "or BatchNormalization. Load an earlier checkpoint."
        )


def _array(variable: Any, default: np.ndarray) -> np.ndarray:
    return default if variable is None else np.asarray(variable, "float64")
