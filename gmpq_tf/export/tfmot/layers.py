"""Converts layers and quantizers from Keras 3 to tf_keras with TFMOT, and back."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import keras

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.layouts import check_layer
from gmpq_tf.export.tfmot.fake_quantizers import (
    InputFakeQuantizer,
    KernelFakeQuantizer,
)
from gmpq_tf.export.tfmot.libraries import libraries
from gmpq_tf.export.tfmot.quantize_config import PolicyQuantizeConfig
from gmpq_tf.export.tfmot.translate import describe, make_layer
from gmpq_tf.export.tfmot.weights import unwrapped
from gmpq_tf.graph import Call, Graph, is_searchable
from gmpq_tf.layers import QUANT_LAYERS
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer


def quantized_layer(call: Call, graph: Graph) -> Any:
    """The tf_keras layer of a student's layer, quantizers included."""
    library = libraries()
    if isinstance(call.layer, InputQuantizer):
        return library.QuantizeLayer(_input_quantizer(call.layer), name=call.name)
    layer = float_layer(call, graph)
    if not is_searchable(call.layer):
        return layer
    check_layer(call)
    config = PolicyQuantizeConfig(
        _kernel_quantizer(call.layer), _input_quantizer(call.layer.input_quantizer)
    )
    return library.tfmot.QuantizeWrapperV2(layer, config)


def float_layer(call: Call, graph: Graph) -> Any:
    """The tf_keras layer of a student's layer; None for a quantizer."""
    if isinstance(call.layer, InputQuantizer):
        return None
    kind, arguments = describe(call, graph)
    if kind == "BatchNormalization":
        arguments["fused"] = False  # the fused kernel differs from Keras 3 in last bits
    return make_layer(libraries().tf_keras.layers, kind, arguments, call)


def student_layer(call: Call, graph: Graph) -> Any:
    """The Keras 3 layer of a tf_keras layer, quantizers included."""
    _check_ours(call)
    if isinstance(call.layer, libraries().QuantizeLayer):
        return _student_quantizer(call.layer.quantizer, call.name)
    inner = replace(call, layer=unwrapped(call.layer))
    kind, arguments = describe(inner, graph)
    if kind not in QUANT_LAYERS:
        return make_layer(keras.layers, kind, arguments, inner)
    config = call.layer.quantize_config
    quantizer, name = config.kernel_quantizer, "kernel_quantizer"
    arguments[name] = KernelQuantizer(
        quantizer.bits, quantizer.method, quantizer.shared_axes, name=name
    )
    arguments["input_quantizer"] = _student_quantizer(
        config.input_quantizer, "input_quantizer"
    )
    return make_layer(SimpleNamespace(**QUANT_LAYERS), kind, arguments, inner)


def _check_ours(call: Call) -> None:
    """Refuses quantizers of other libraries, and layers without quantizers."""
    layer = call.layer
    found: Any = None
    wanted: type = PolicyQuantizeConfig
    if isinstance(layer, libraries().QuantizeLayer):
        found, wanted = layer.quantizer, InputFakeQuantizer
    elif hasattr(layer, "quantize_config"):
        found = layer.quantize_config
    elif type(layer).__name__ not in QUANT_LAYERS:
        return
    if not isinstance(found, wanted):
        raise ExportError(
            "Every quantizer must be one of gmpq_tf's. "
            f"Received: layer={call.name!r} with {type(found).__name__}. "
            "Pass what quantize_apply of export.tfmot returned, not of TFMOT."
        )


def _student_quantizer(quantizer: InputFakeQuantizer, name: str) -> InputQuantizer:
    return InputQuantizer(
        quantizer.bits,
        quantizer.signed,
        quantizer.method,
        power_of_two=quantizer.power_of_two,
        learn_range=quantizer.learn_range,
        name=name,
    )


def _input_quantizer(quantizer: InputQuantizer) -> InputFakeQuantizer:
    return InputFakeQuantizer(
        quantizer.bits[0],
        quantizer.signed,
        quantizer.method,
        quantizer.power_of_two,
        quantizer.learn_range,
        first_batch=float(quantizer.calibrated) == 0,
    )


def _kernel_quantizer(layer: Any) -> KernelFakeQuantizer:
    quantizer = layer.kernel_quantizer
    return KernelFakeQuantizer(
        quantizer.bits[0], quantizer.method, quantizer.shared_axes, first_batch=False
    )
