"""Matches the mean and the spread of every channel to the float network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import Call, infer
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.post_training.bias_correction import move_sums
from gmpq_tf.post_training.walk import Pair, Walk, without_activation
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.units import Unit, cap_of

LARGEST_GAIN = 2.0
PIECE = 2**20  # how many values are summed at once
FITS = ("mean", "error", "spread")


@dataclass(frozen=True, eq=False)
class Matched:
    """The change that `match_statistics` made to one layer, float64 [channels] each.

    Args:
        gain: factor of the layer's sums.
        shift: offset that is added after that.
    """

    gain: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class Line:
    """The line `y = gain x + shift` of each channel, from student x to float y.

    Args:
        gain: [channels].
        shift: [channels].
        mean: mean of x, [channels].
    """

    gain: np.ndarray
    shift: np.ndarray
    mean: np.ndarray

    @classmethod
    def through(
        cls,
        ours: Iterable[np.ndarray],
        theirs: Iterable[np.ndarray],
        fit: str,
        bounds: tuple[float, float],
    ) -> Line:
        """Fits lines to batches of student and float network.

        Pairs of values that are both outside the bounds do not count, because the
        activation hides their difference.

        Args:
            ours: the student's values, [B, ..., channels] each.
            theirs: the float network's values for the same images, likewise.
            fit: "mean", "error" or "spread"; see `match_statistics`.
            bounds: values between which the activation is not constant.
        """
        sums, low, high = np.zeros(()), *bounds
        for x, y in _pieces(ours, theirs):
            seen = (np.maximum(x, y) > low) & (np.minimum(x, y) < high)
            x, y = x * seen, y * seen
            terms = seen, x, y, x * x, y * y, x * y
            sums = sums + np.stack([term.sum(0, "float64") for term in terms])
        count = np.maximum(sums[0], 1.0)
        x, y, xx, yy, xy = sums[1:] / count
        vx, vy, cov = xx - x * x, yy - y * y, xy - x * y
        live = (vx > 1e-12 * (1 + x * x)) & (vy > 1e-12 * (1 + y * y))
        safe = np.where(live, vx, 1.0)
        gain = {
            "mean": np.ones_like(x),
            "error": cov / safe,
            "spread": np.sqrt(np.maximum(vy, 0) / safe),
        }[fit]
        gain = np.where(live, np.clip(gain, 1 / LARGEST_GAIN, LARGEST_GAIN), 1.0)
        return cls(gain, y - gain * x, x)


def _pieces(
    ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows of both, float64 [rows, channels], in small pieces."""
    for x, y in zip(ours, theirs, strict=True):
        x, y = (values.reshape(-1, values.shape[-1]) for values in (x, y))
        rows = max(1, PIECE // x.shape[-1])
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            yield x[part].astype("float64"), y[part].astype("float64")


def match_statistics(
    student: keras.Model,
    model: keras.Model,
    dataset: Any,
    batches: int | None = None,
    fit: str = "mean",
) -> dict[str, Matched]:
    """Scales and shifts outputs so that each channel matches the float network.

    `y <- g y + c` after each layer (and its BatchNormalization), in the order of the
    graph, with earlier layers matched already. With `fit="mean"` only c is measured;
    with "error" g and c have least squared error, `g = cov(y, y') / var(y)`; with
    "spread" mean and standard deviation become those of the float network y',
    `g = std(y') / std(y)`. Values that a following ReLU hides in both networks do not
    count. Kernel codes do not change: g is put into kernel steps, c into the bias or
    into beta.

    Unlike `snap_biases(student, images)`, which sets BatchNormalization to the
    statistics of the images, this compares with the float network on the same images,
    and also works for layers without BatchNormalization.

    Args:
        student: from `quantize_model`, calibrated; changed in place.
        model: the float model it was made of; not changed.
        dataset: images, as `calibrate` takes them; a few hundred.
        batches: how many batches to use; None: all.
        fit: "mean", "error" or "spread".

    Returns:
        Layer name -> its change. Layers used more than once are left out, with a
        warning. Dense layers, which have one step, are only shifted; layers without
        bias and BatchNormalization are only scaled.

    Raises:
        CalibrationError: the student is not calibrated, or of another model.
        InputError: there are no images, or they do not fit the model.
        ValueError: an unknown `fit`.
    """
    if fit not in FITS:
        raise ValueError(
            f"fit must be 'mean', 'error' or 'spread'. Received: fit={fit!r}. "
            f"{suggest(str(fit), FITS)}"
        )
    walk = Walk(student, model, dataset, batches)
    found: dict[str, Matched] = {}
    for pair in walk.pairs:
        line = _line(walk, pair, fit)
        norm = pair.unit.batch_norm
        found[pair.name] = rescale(
            pair.unit.call.layer, norm.layer if norm else None, line.gain, line.shift
        )
    if walk.shared:
        warnings.warn(
            "These layers are used more than once and keep their statistics: "
            f"{', '.join(walk.shared)}.",
            stacklevel=2,
        )
    return found


def _line(walk: Walk, pair: Pair, fit: str) -> Line:
    name = pair.sum_call.name
    source = walk.reference.graph.calls[pair.reference[pair.name]].layer
    layer = pair.unit.call.layer
    norm = pair.unit.batch_norm
    with without_activation(layer, source):
        # Not the outputs after BatchNormalization: the layer itself will change, and
        # its outputs must be computed again.
        products = walk.student.outputs(pair.student[pair.name])
        line = Line.through(
            (infer_alone(norm, batch) for batch in products),
            walk.reference.outputs(pair.reference[name]),
            fit,
            _bounds(pair.unit),
        )
    if KERNEL_KINDS[layer.searchable_kind].one_step:
        shift = line.shift + (line.gain - 1) * line.mean
        return Line(np.ones_like(line.gain), shift, line.mean)
    return line


def infer_alone(norm: Call | None, values: np.ndarray) -> np.ndarray:
    """Values [B, ..., C] after a BatchNormalization; unchanged for None."""
    return values if norm is None else np.asarray(infer(norm, {norm.inputs[0]: values}))


def _bounds(unit: Unit) -> tuple[float, float]:
    """The interval of sums in which the unit's activation is not constant."""
    if unit.activation is None:
        return -np.inf, np.inf
    cap = cap_of(unit.activation)
    return 0.0, np.inf if cap is None else cap


def rescale(
    layer: Any, norm: Any | None, gain: np.ndarray, shift: np.ndarray
) -> Matched:
    """Changes a layer, with its BatchNormalization, to output `gain y + shift`.

    Args:
        layer: quantized layer, with one step per channel unless all gains are 1.
        norm: the BatchNormalization that is its only reader, or None.
        gain: positive, [channels].
        shift: [channels].

    Returns:
        The change that was made; without bias and BatchNormalization its shift is 0.
    """
    bias = np.asarray(layer.bias, "float64") if layer.use_bias else np.zeros_like(gain)
    # The part of `gain y + shift` that scaling the kernel does not achieve.
    rest = shift + (gain - 1) * _constant(bias, norm)
    scale_kernel(layer, gain)
    if norm is None and not layer.use_bias:
        return Matched(gain, np.zeros_like(gain))
    move_sums(layer, norm, rest)
    return Matched(gain, shift)


def _constant(bias: np.ndarray, norm: Any | None) -> np.ndarray:
    """The output for a product of 0, [channels]."""
    if norm is None:
        return bias
    sigma = np.sqrt(np.asarray(norm.moving_variance, "float64") + norm.epsilon)
    gamma = np.asarray(norm.gamma, "float64") if norm.scale else np.ones_like(sigma)
    beta = np.asarray(norm.beta, "float64") if norm.center else np.zeros_like(sigma)
    return gamma * (bias - np.asarray(norm.moving_mean, "float64")) / sigma + beta


def scale_kernel(layer: Any, gain: np.ndarray) -> None:
    """Multiplies a kernel and its learned steps by factors, [output channels]."""
    if (gain == 1).all():
        return
    kind, quantizer = KERNEL_KINDS[layer.searchable_kind], layer.kernel_quantizer
    kernel = np.asarray(layer.kernel, "float64")
    columns = kind.columns(kernel) * gain
    layer.kernel.assign(kind.from_columns(columns, kernel.shape))
    if quantizer.learned:
        log2 = np.asarray(quantizer.log2_step, "float64")
        moved = log2 + np.log2(gain).reshape(log2.shape)
        quantizer.log2_step.assign(moved)
