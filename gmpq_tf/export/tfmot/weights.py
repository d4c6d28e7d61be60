"""Copies weights between layers of Keras 3 and their counterparts in tf_keras."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmpq_tf.export.tfmot.fake_quantizers import InputFakeQuantizer, KernelFakeQuantizer
from gmpq_tf.graph import Graph
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer

NORM_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
QUANTIZER_WEIGHTS = ("log2_step", "log2_range", "zero_code", "calibrated")


def copy_weights(graph: Graph, model: Any) -> None:
    """Copies the weights of a Keras 3 graph into its tf_keras model."""
    layers = {unwrapped(layer).name: layer for layer in model.layers}
    for call in graph.calls:
        if call.name in layers:
            copy_layer(call.layer, layers[call.name])


def copy_layer(source: Any, target: Any) -> None:
    """Copies the weights of a layer into its counterpart in the other library."""
    values, variables = _weights(source), _weights(target)
    for name, variable in variables.items():
        if name in values:
            variable.assign(np.asarray(values[name]))


def _weights(layer: Any) -> dict[str, Any]:
    """Variables of a layer of either library, by the names in the student."""
    config, inner = getattr(layer, "quantize_config", None), unwrapped(layer)
    found = {name: getattr(inner, name, None) for name in ("bias", *NORM_WEIGHTS)}
    kernel = getattr(inner, "depthwise_kernel", getattr(inner, "kernel", None))
    found["kernel"] = kernel if config is None else config.kernel
    owner = config or layer
    for name in ("kernel_quantizer", "input_quantizer", "quantizer"):
        found |= _quantizer_weights(getattr(owner, name, None))
    found |= _quantizer_weights(layer)
    return {name: value for name, value in found.items() if value is not None}


def _quantizer_weights(quantizer: Any) -> dict[str, Any]:
    """Variables of a quantizer of either library; {} for anything else."""
    if isinstance(quantizer, (InputFakeQuantizer, KernelFakeQuantizer)):
        return dict(quantizer.variables)
    if isinstance(quantizer, (InputQuantizer, KernelQuantizer)):
        owned = [name for name in QUANTIZER_WEIGHTS if hasattr(quantizer, name)]
        return {name: getattr(quantizer, name) for name in owned}
    return {}


def unwrapped(layer: Any) -> Any:
    """The layer inside TFMOT's wrapper, or the layer itself if it is not wrapped."""
    return layer.layer if hasattr(layer, "quantize_config") else layer
