"""Bias correction: give every channel the mean that it has in the float network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from gmpq_tf.post_training.walk import Pair, Walk, without_activation


def correct_biases(
    student: keras.Model, model: keras.Model, dataset: Any, batches: int | None = None
) -> dict[str, np.ndarray]:
    """Moves biases so that each layer's sums have the means of the float network.

    `b <- b + E[W x + b] - E[q(W) q(x) + b]`, with the means over images and positions
    of each channel. They are measured layer by layer in the order of the graph, with
    earlier layers corrected already. If a BatchNormalization follows, its beta is moved
    (without beta its moving mean). Labels are not needed. Call it before `snap_biases`,
    and that without data: statistics measured there would partly undo the correction.

    Unlike the paper's analytic form the means are measured, which needs no assumption
    on distributions.

    Args:
        student: from `quantize_model`, calibrated; changed in place.
        model: the float model it was made of; not changed.
        dataset: images, as `calibrate` takes them; a few hundred.
        batches: how many batches to use; None: all.

    Returns:
        Layer name -> shift of its sums, float64 [channels]. Layers that are used more
        than once, and those without bias and BatchNormalization, are left out, with a
        warning that names them.

    Raises:
        CalibrationError: the student is not calibrated, or of another model.
        InputError: there are no images, or they do not fit the model.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction", ICCV 2019, section 4.2 and appendix D.
    """
    walk = Walk(student, model, dataset, batches)
    shifts: dict[str, np.ndarray] = {}
    left = list(walk.shared)
    for pair in walk.pairs:
        layer, norm = pair.unit.call.layer, pair.unit.batch_norm
        if norm is None and not layer.use_bias:
            left.append(pair.name)
            continue
        shift = _mean_difference(walk, pair)
        move_sums(layer, norm.layer if norm else None, shift)
        shifts[pair.name] = shift
    if left:
        warnings.warn(
            "Biases of these layers are not corrected: "
            f"{', '.join(left)}. Layers used once, with a bias or a "
            "BatchNormalization, can be.",
            stacklevel=2,
        )
    return shifts


def _mean_difference(walk: Walk, pair: Pair) -> np.ndarray:
    """Mean sums of the float network minus those of the student, [channels]."""
    name = pair.sum_call.name
    number, other = pair.student[name], pair.reference[name]
    source = walk.reference.graph.calls[pair.reference[pair.name]].layer
    with without_activation(pair.unit.call.layer, source):
        ours = channel_means(walk.student.outputs(number))
        theirs = channel_means(walk.reference.outputs(other))
    return theirs - ours


def channel_means(outputs: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of each channel over batches [B, ..., channels]: float64 [channels]."""
    total, count = 0.0, 0
    for batch in outputs:
        values: np.ndarray = batch.astype("float64").reshape(-1, batch.shape[-1])
        total = total + values.sum(axis=0)
        count += len(values)
    return np.asarray(total) / count


def move_sums(layer: Any, norm: Any | None, shift: np.ndarray) -> None:
    """Adds a shift [channels] to the output of a layer or its BatchNormalization."""
    if norm is None:
        layer.bias.assign(np.asarray(layer.bias, "float64") + shift)
    elif norm.center:
        norm.beta.assign(np.asarray(norm.beta, "float64") + shift)
    else:
        sigma = np.sqrt(np.asarray(norm.moving_variance, "float64") + norm.epsilon)
        gamma = np.asarray(norm.gamma, "float64") if norm.scale else np.ones_like(sigma)
        live = np.abs(gamma) > 1e-6 * sigma
        moved = np.where(live, shift * sigma / np.where(live, gamma, 1.0), 0.0)
        norm.moving_mean.assign(np.asarray(norm.moving_mean, "float64") - moved)
