"""Rounds biases to the grid of the integer accumulator."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import Call, Graph, is_frozen_norm, is_searchable, read_graph
from gmpq_tf.inputs import InputError
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layer_kinds import Role
from gmpq_tf.transform.batches import ModelInputs, input_batches
from gmpq_tf.transform.calibrate import (
    check_calibrated,
    check_quantized,
)
from gmpq_tf.transform.forward import LayerwiseRun
from gmpq_tf.transform.placement import keeps_grid
from gmpq_tf.transform.units import unit_of

# Statistics whose variance (in log2) or mean (in sigmas) moves by more, in the median
# over channels, cannot come from the training data: a warning names the layer.
FAR_LOG2, FAR_SIGMAS = 2.0, 2.0
AFFINE_CODE = 127  # kernel code of a BatchNormalization that stands alone


def snap_biases(
    student: keras.Model, dataset: Any = None, batches: int | None = None
) -> None:
    """Rounds every folded bias to what the 32-bit accumulator of its layer can hold.

    TFLite stores `b - mean + beta sigma / gamma` as a whole number of units of `input
    step * kernel step`, which is coarse where both have few bits. Were biases not
    rounded in Keras, codes of the next layer would differ by one from those of the
    file, and at 2 and 3 bits some decisions too. This moves the moving mean of the
    BatchNormalization (or, without one, the layer's bias) by half a unit at most, so
    that the saved Keras model and its export add the same integers. A
    BatchNormalization that follows no layer, as in a pre-activation network, is
    exported as a depthwise convolution, and is treated likewise. Call it once, after
    fine-tuning.

    Args:
        student: from `quantize_model`, calibrated and trained; changed in place.
        dataset: arrays or batches of training images, as `calibrate` takes them,
            augmented as in training; a few thousand. The statistics of each
            BatchNormalization are then measured on them before its layer is rounded,
            with the layers before it rounded already. So they do not lag behind the
            weights, as moving averages do, and compensate for the rounding of earlier
            layers. Frozen ones (not trainable, or called with `training=False`) keep
            theirs. None: all keep theirs.
        batches: how many batches to use; None: all.

    Raises:
        CalibrationError: the model is not a calibrated student.
        InputError: data that do not fit the student's inputs, or no images.
    """
    _check_student(student)
    graph = read_graph(student)
    forward = None if dataset is None else _forward(graph, dataset, batches)
    uses = Counter(id(call.layer) for call in graph.calls)
    together, seen = unit_of(graph), set[int]()
    other: list[str] = []
    for number, call in enumerate(graph.calls):
        if is_searchable(call.layer) and id(call.layer) not in seen:
            seen.add(id(call.layer))
            reader = together[id(call)].batch_norm
            norm = reader.layer if reader else None
            # Layers used twice see two distributions; their statistics stay.
            alone = uses[id(call.layer)] == uses[id(norm)] == 1
            if reader and forward and alone and not is_frozen_norm(reader):
                before = _statistics(norm)
                _measure_statistics(norm, forward.outputs(number))
                if _are_of_other_data(before, _statistics(norm)):
                    other.append(reader.name)
            _snap(call.layer, norm)
        elif call.role is Role.NORM and uses[id(call.layer)] == 1:
            step = input_step(graph, call)
            if step is not None and together[id(call)].call is call:
                _snap_norm(call.layer, 0.0, np.asarray(step / AFFINE_CODE))
    if other:
        warnings.warn(
            "The statistics of these layers are far from those of training: "
            f"{', '.join(other)}. Pass a few thousand training images, scaled and "
            "augmented as in training, or none to keep the statistics; set "
            "trainable=False on layers that were frozen.",
            stacklevel=2,
        )


def _check_student(student: keras.Model) -> None:
    """Refuses hypernets, float models and models that are not calibrated."""
    check_quantized(student, "Biases are rounded to the steps of a quantized model.")
    check_calibrated(student, "rounding biases")


def input_step(graph: Graph, call: Call) -> float | None:
    """Step of the grid of a call's first operand; None where it is on no grid."""
    producers = graph.producers()
    producer = producers.get(call.inputs[0])
    while producer is not None and _keeps_values(producer):
        producer = producers.get(producer.inputs[0])
    if producer is None or producer.role is not Role.QUANTIZER:
        return None
    return producer.layer.step()


def _keeps_values(call: Call) -> bool:
    joins = call.role is Role.JOIN  # of operands that are on one grid
    return bool(call.inputs) and (joins or keeps_grid(call))


def bias_unit(layer: Any) -> np.ndarray:
    """Value of one unit of the accumulator, before BatchNormalization: [channels].

    `input step * kernel step`, of the trained codes; float64.
    """
    kernel = np.asarray(layer.kernel)
    step = np.broadcast_to(layer.kernel_quantizer.step(kernel), kernel.shape)
    first = KERNEL_KINDS[layer.searchable_kind].columns(step)[0]
    return first.astype("float64") * layer.input_quantizer.step()


def _forward(graph: Graph, dataset: Any, batches: int | None) -> LayerwiseRun:
    inputs = ModelInputs(graph)
    found = [inputs.structured(b) for b in input_batches(inputs, dataset, batches)]
    if not found:
        raise InputError(
            "Measuring statistics needs at least one image. Received: a data set "
            "without any. Pass training images, or None to keep the statistics."
        )
    return LayerwiseRun(graph, found)


def _statistics(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Moving mean and variance + epsilon, float64 [channels] each."""
    variance = np.asarray(norm.moving_variance, "float64") + norm.epsilon
    return np.asarray(norm.moving_mean, "float64"), variance


def _are_of_other_data(before: tuple, after: tuple) -> bool:
    """Whether statistics differ by more than the lag of moving averages explains."""
    ratio = np.abs(np.log2(after[1] / before[1]))
    moved = np.abs(after[0] - before[0]) / np.sqrt(before[1])
    return bool(np.median(ratio) > FAR_LOG2 or np.median(moved) > FAR_SIGMAS)


def _measure_statistics(norm: Any, outputs: Iterable[np.ndarray]) -> None:
    """Sets the moving mean and variance to those of a layer's outputs, [B, ..., C]."""
    count, total, squares = 0, 0.0, 0.0
    for batch in outputs:
        values: np.ndarray = batch.astype("float64").reshape(-1, batch.shape[-1])
        count += len(values)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
    mean = total / count
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(np.maximum(squares / count - mean**2, 0.0))


def _snap(layer: Any, norm: Any | None) -> None:
    unit = bias_unit(layer)
    bias = np.asarray(layer.bias, "float64") if layer.use_bias else np.zeros(1)
    if norm is not None:
        _snap_norm(norm, bias, unit)
    elif layer.use_bias:
        layer.bias.assign(np.round(bias / unit) * unit)


def _snap_norm(norm: Any, bias: np.ndarray | float, unit: np.ndarray) -> None:
    """Sets means so that `bias - mean + beta sigma / gamma` is a multiple of `unit`.

    Channels with gamma = 0 keep theirs: their output does not depend on the mean.
    """
    sigma = np.sqrt(np.asarray(norm.moving_variance, "float64") + norm.epsilon)
    gamma = np.asarray(norm.gamma, "float64") if norm.scale else np.ones_like(sigma)
    beta = np.asarray(norm.beta, "float64") if norm.center else np.zeros_like(sigma)
    mean = np.asarray(norm.moving_mean, "float64")
    live = np.abs(gamma) > 1e-6 * sigma
    offset = beta * sigma / np.where(live, gamma, 1.0)
    folded = bias - mean + offset
    moved = bias + offset - np.round(folded / unit) * unit
    norm.moving_mean.assign(np.where(live, moved, mean))
