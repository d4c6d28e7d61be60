"""Move biases onto the grid that integer kernels can hold."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import Call, Graph, is_searchable, read_graph
from gmpq_tf.quantizers.grid import symmetric_limit

INT8_LIMIT = 127  # largest kernel code of INT8 storage


def code_factor(limit: int, storage_limit: int) -> int:
    """Largest power of two by which codes up to `limit` can be multiplied in storage.

    A bias is stored in units of `input step * kernel step`, which is coarse where both
    have few bits. Codes times `2^k` with steps over `2^k` are the same weights, and
    refine the unit.
    """
    return 2 ** int(math.log2(storage_limit // limit))


def snap_biases(student: keras.Model) -> None:
    """Round every folded bias to what the 32-bit accumulator of its layer can hold.

    TFLite stores `b - mean + beta sigma / gamma` in units of `input step * kernel
    step`; unrounded biases in Keras would move codes of the next layer by one step,
    and at 2 and 3 bits some decisions with them. This moves the moving mean of the
    BatchNormalization (or, without one, the layer's bias) by half a unit at most, so
    that the saved Keras model and its export add the same integers. Call it once,
    after fine-tuning.

    Args:
        student: from `quantize_model`, calibrated and trained; changed in place.
    """
    graph = read_graph(student)
    seen: set[int] = set()
    for call in graph.calls:
        if is_searchable(call.layer) and id(call.layer) not in seen:
            seen.add(id(call.layer))
            _snap(call.layer, _batch_norm(graph, call))


def bias_unit(layer: Any) -> np.ndarray:
    """What one unit of the accumulator is worth, before BatchNormalization, [channels].

    That of INT8 storage, the finest and the one that every runtime computes alike.
    """
    limit = symmetric_limit(layer.kernel_quantizer.bits[0])
    factor = code_factor(limit, INT8_LIMIT)
    kernel = np.asarray(layer.kernel)
    step = np.broadcast_to(layer.kernel_quantizer.step(kernel), kernel.shape)
    axes = 2 if layer.searchable_kind == "DepthwiseConv2D" else 1
    first = step[(0,) * (kernel.ndim - axes)].astype("float64").ravel()
    return first * layer.input_quantizer.step() / factor


def _snap(layer: Any, norm: Any | None) -> None:
    unit = bias_unit(layer)
    bias = np.asarray(layer.bias, "float64") if layer.use_bias else 0.0
    if norm is None:
        if layer.use_bias:
            layer.bias.assign(np.round(bias / unit) * unit)
        return
    sigma = np.sqrt(np.asarray(norm.moving_variance, "float64") + norm.epsilon)
    gamma = np.asarray(norm.gamma, "float64") if norm.scale else np.ones_like(sigma)
    beta = np.asarray(norm.beta, "float64") if norm.center else np.zeros_like(sigma)
    mean = np.asarray(norm.moving_mean, "float64")
    live = np.abs(gamma) > 1e-6 * sigma
    offset = beta * sigma / np.where(live, gamma, 1.0)
    folded = bias - mean + offset
    moved = bias + offset - np.round(folded / unit) * unit
    norm.moving_mean.assign(np.where(live, moved, mean))


def _batch_norm(graph: Graph, call: Call) -> Any | None:
    """The BatchNormalization that folds into a call."""
    readers = graph.consumers()[call.outputs[0]]
    linear = call.activation == "linear"
    if linear and len(readers) == 1 and readers[0].kind == "BatchNormalization":
        return readers[0].layer
    return None
