"""Functional model + policy -> the quantized model that is fine-tuned and shipped."""

from __future__ import annotations

from typing import Any

import keras

from gmpq_tf.graph import Call, check_float, free_name, is_searchable, read_graph
from gmpq_tf.layers import QUANT_LAYERS, UnitQuantizer
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers import InputQuantizer
from gmpq_tf.quantizers.input_quantizer import DEFAULT_INPUT_QUANTIZER
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    check_widths,
)
from gmpq_tf.transform.exportable import warn_of_refusals
from gmpq_tf.transform.gates import split_gates
from gmpq_tf.transform.hypernet import (
    fit_kernel_steps,
    make_quantized,
    warn_unquantized,
)
from gmpq_tf.transform.placement import WantedGrid, place_quantizers
from gmpq_tf.transform.rewrite import (
    clone_layer,
    copy_weights,
    keep_loss,
    rebuild,
    split_activations,
)

STREAM_BITS = 8


def quantize_model(
    model: keras.Model,
    policy: BitwidthPolicy,
    input_quantizer: str = DEFAULT_INPUT_QUANTIZER,
    kernel_quantizer: str = DEFAULT_KERNEL_QUANTIZER,
) -> keras.Model:
    """Builds the quantized model of a policy: what is trained is what is shipped.

    Each layer of `KERNEL_KINDS` quantizes its input and its kernel to the policy's
    bits. Every other tensor that TFLite must store (model input, operands and
    results of Add, Multiply and Concatenate, inputs of average pools, outputs) is put
    on an 8-bit grid, so that export changes nothing. For that, swish is written as
    `x sigmoid(x)` and hard swish as `x hard_sigmoid(x)`. Where a layer requantizes a
    tensor on such a grid to its own bits, both steps are powers of two, so that the
    grids nest.

    Args:
        model: a built functional or Sequential model; its weights and
            BatchNormalization statistics are copied, and it is not modified. Frozen
            layers stay frozen; BatchNormalization that is called with
            `training=False`, directly or through a nested model, becomes frozen.
        policy: bits for each searchable layer of `model`.
        input_quantizer: a name in `INPUT_QUANTIZERS`.
        kernel_quantizer: a name in `KERNEL_QUANTIZERS`.

    Returns:
        An ordinary functional Keras model. Call `gmpq.calibrate(student, dataset)`
        before fitting or exporting it; otherwise both are refused.

    Raises:
        GraphError: a subclassed, unbuilt or quantized model, or a layer that cannot be
            rebuilt.
        PolicyError: the policy is for other layers (the nearest names are given), or
            has bits that the kernel quantizer does not support.
    """
    check_float(model)
    policy.check_model(model)
    widths = {name: (bits.weight_bits,) for name, bits in policy.items()}
    check_widths(kernel_quantizer, widths)
    graph = split_gates(split_activations(read_graph(model)))
    placement = place_quantizers(graph)
    warn_unquantized(graph)
    warn_of_refusals(graph)
    grids: dict[WantedGrid, InputQuantizer] = {}
    taken = {call.name for call in graph.calls}

    def quantizer_of(grid: WantedGrid) -> InputQuantizer:
        if grid not in grids:
            name = free_name(grid.name, taken)
            taken.add(name)
            grids[grid] = _tensor_quantizer(grid, input_quantizer, name)
        return grids[grid]

    def make_layer(call: Call) -> Any:
        if not is_searchable(call.layer):
            return clone_layer(call)
        bits = policy[call.name]
        quantizer = InputQuantizer(
            bits.activation_bits,
            placement.signed[call.name],
            input_quantizer,
            power_of_two=call.name in placement.nested,
            name="input_quantizer",
        )
        return make_quantized(
            QUANT_LAYERS, call, quantizer, bits.weight_bits, kernel_quantizer
        )

    def on_operand(call: Call, index: int, tensor: Any) -> Any:
        grid = placement.on_operand.get(id(call))
        return tensor if grid is None else quantizer_of(grid)(tensor)

    def on_output(index: int, tensor: Any) -> Any:
        grid = placement.on_output.get(index)
        return tensor if grid is None else quantizer_of(grid)(tensor)

    student = rebuild(graph, model.name, make_layer, on_operand, on_output)
    copy_weights(graph, student)
    keep_loss(model, student)
    fit_kernel_steps(student)
    return student


def _tensor_quantizer(grid: WantedGrid, method: str, name: str) -> InputQuantizer:
    """The layer that puts a tensor on an 8-bit grid."""
    if grid.unit:
        return UnitQuantizer(method=method, name=name)
    return InputQuantizer(
        STREAM_BITS, grid.signed, method, power_of_two=grid.power_of_two, name=name
    )
