"""Give every channel the mean and the spread that it has in the float network."""

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
PIECE = 2**20  # values that are summed at once
FITS = ("mean", "error", "spread")


@dataclass(frozen=True, eq=False)
class Matched:
    """What `match_statistics` did to one layer, float64 [channels] each.

    Args:
        gain: what its sums were multiplied by.
        shift: what was added to them after that.
    """

    gain: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class Line:
    """The line `y = gain x + shift` of each channel, from float network and student."""

    gain: np.ndarray
    shift: np.ndarray
    mean: np.ndarray  # of x

    @classmethod
    def through(
        cls,
        ours: Iterable[np.ndarray],
        theirs: Iterable[np.ndarray],
        fit: str,
        bounds: tuple[float, float],
    ) -> Line:
        """Measured on batches [B, ..., channels] of the same images.

        Where both are outside the bounds the activation hides the difference, and it
        does not count.
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
    """Rows of both, float64 [rows, channels], few enough for little memory."""
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
    """Scale and move sums so that each channel is as in the float network.

    `y <- g y + c` after each layer (and its BatchNormalization), one after the other in
    the order of the graph, with those before it matched. With `fit="mean"` c alone is
    measured, with "error" g and c are those of least squared error, `g = cov(y, y') /
    var(y)`; with "spread" mean and standard deviation become those of the float
    network, `g = std(y') / std(y)`. Where a ReLU after it hides both, values do not
    count. Codes of kernels do not change: g goes into their steps, c into the bias or
    into beta.
    Unlike `snap_biases(student, images)`, which gives each BatchNormalization the
    statistics of the images, this compares with the float network on the same images;
    it is for folded BatchNormalization, and for layers without, too.

    Args:
        student: from `quantize_model`, calibrated; changed in place.
        model: the float model it was made of; not changed.
        dataset: images, as `calibrate` takes them; a few hundred.
        batches: how many to use; None: all.
        fit: "mean", "error" or "spread".

    Returns:
        Layer name -> what was done. Layers used more than once are left out, with a
        warning; Dense layers, with one step, and layers without bias and
        BatchNormalization are only moved or only scaled.

    Raises:
        CalibrationError: not a calibrated student, or one of another model.
        InputError: no images, or images that do not fit.
        ValueError: another `fit`.
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
        # Not the normalized ones: the layer, which will change, must be run again.
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
    """What a BatchNormalization makes of values [B, ..., C]; None: themselves."""
    return values if norm is None else np.asarray(infer(norm, {norm.inputs[0]: values}))


def _bounds(unit: Unit) -> tuple[float, float]:
    """Between which sums matter to what the unit puts out."""
    if unit.activation is None:
        return -np.inf, np.inf
    cap = cap_of(unit.activation)
    return 0.0, np.inf if cap is None else cap


def rescale(
    layer: Any, norm: Any | None, gain: np.ndarray, shift: np.ndarray
) -> Matched:
    """Make a layer, with its BatchNormalization, put out `gain y + shift`.

    Args:
        layer: quantized, with one step a channel unless all gains are 1.
        norm: the BatchNormalization that alone reads it, if any.
        gain: positive, [channels].
        shift: [channels].

    Returns:
        What it does now; without bias and BatchNormalization the shift is 0.
    """
    bias = np.asarray(layer.bias, "float64") if layer.use_bias else np.zeros_like(gain)
    # What scaling the kernel alone leaves of `gain y + shift`.
    rest = shift + (gain - 1) * _constant(bias, norm)
    scale_kernel(layer, gain)
    if norm is None and not layer.use_bias:
        return Matched(gain, np.zeros_like(gain))
    move_sums(layer, norm, rest)
    return Matched(gain, shift)


def _constant(bias: np.ndarray, norm: Any | None) -> np.ndarray:
    """What is put out where the product is zero, [channels]."""
    if norm is None:
        return bias
    sigma = np.sqrt(np.asarray(norm.moving_variance, "float64") + norm.epsilon)
    gamma = np.asarray(norm.gamma, "float64") if norm.scale else np.ones_like(sigma)
    beta = np.asarray(norm.beta, "float64") if norm.center else np.zeros_like(sigma)
    return gamma * (bias - np.asarray(norm.moving_mean, "float64")) / sigma + beta


def scale_kernel(layer: Any, gain: np.ndarray) -> None:
    """Multiply a kernel, and its learned steps, by factors [output channels]."""
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
