"""Functional model -> hypernet: every searchable layer holds several bit-widths."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras

from gmpq_tf.float_layers import float_layers, warn_uncounted
from gmpq_tf.graph import Call, Graph, is_searchable, read_graph
from gmpq_tf.kernel_kinds import listed
from gmpq_tf.layers import MIXED_LAYERS
from gmpq_tf.layers.batch_norm import fused_norm
from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION, relaxation_of
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer
from gmpq_tf.quantizers.input_quantizer import DEFAULT_INPUT_QUANTIZER
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    check_widths,
)
from gmpq_tf.space import SearchSpace
from gmpq_tf.transform.exportable import warn_of_refusals
from gmpq_tf.transform.gates import split_gates
from gmpq_tf.transform.placement import input_signs
from gmpq_tf.transform.precision import in_float32
from gmpq_tf.transform.rewrite import (
    clone_layer,
    copy_weights,
    rebuild,
    split_activations,
)


def build_hypernet(
    model: keras.Model,
    space: SearchSpace | None = None,
    input_quantizer: str = DEFAULT_INPUT_QUANTIZER,
    kernel_quantizer: str = DEFAULT_KERNEL_QUANTIZER,
    relaxation: str = DEFAULT_RELAXATION,
) -> keras.Model:
    """Build the hypernet of section 3.3 from any functional Keras model.

    Each layer of `KERNEL_KINDS` becomes its Mixed layer (eq. 5); weights are copied,
    layer names kept, nested models inlined, the input model left as it is. A separable
    convolution becomes the two layers it computes, `<name>_depthwise` and
    `<name>_pointwise`.

    Args:
        model: a built functional or Sequential model, channels last.
        space: candidate bit-widths; the default is 2-4 with the layers of `end_names`
            at 8 bits.
        input_quantizer: a name in `INPUT_QUANTIZERS`.
        kernel_quantizer: a name in `KERNEL_QUANTIZERS`.
        relaxation: a name in `RELAXATIONS`: how layers compute with several bit-widths.

    Returns:
        A functional model. Call `gmpq.calibrate` on it before use (`PolicySearch.fit`
        does).

    Raises:
        GraphError: a subclassed or unbuilt model, or a layer that cannot be rebuilt.
        PolicyError: the space names a layer that the model lacks, or bits that the
            kernel quantizer does not support.
        ValueError: an unknown relaxation, or one that a quantizer does not support.
    """
    once = relaxation_of(relaxation).one_rounding
    graph = split_activations(read_graph(model))
    candidates = (space or SearchSpace()).candidates(model)
    check_widths(kernel_quantizer, {n: bits for n, (bits, _) in candidates.items()})
    signs = input_signs(graph)
    warn_unquantized(graph)
    warn_of_refusals(split_gates(graph))

    def make_layer(call: Call) -> Any:
        if not is_searchable(call.layer):
            return fused_norm(clone_layer(call))
        weight_bits, activation_bits = candidates[call.name]
        quantizer = InputQuantizer(
            activation_bits,
            signs[call.name],
            input_quantizer,
            one_rounding=once,
            name="input_quantizer",
        )
        return make_quantized(
            MIXED_LAYERS, call, quantizer, weight_bits, kernel_quantizer, relaxation
        )

    hypernet = rebuild(graph, model.name, make_layer)
    copy_weights(graph, hypernet)
    fit_kernel_steps(hypernet)
    return hypernet


def make_quantized(
    classes: Mapping[str, Any],
    call: Call,
    input_quantizer: InputQuantizer,
    weight_bits: tuple[int, ...] | int,
    method: str,
    relaxation: str | None = None,
) -> Any:
    """A Mixed* or Quant* layer with the configuration of the call's stock layer."""
    cls = classes[call.kind]
    config = dict(in_float32(call.layer.get_config()), name=call.name)
    config["activation"] = call.activation  # `split_activations` has split off others
    input_quantizer.calibrate_first = True
    config["input_quantizer"] = input_quantizer
    config["kernel_quantizer"] = KernelQuantizer(
        weight_bits,
        method,
        cls.shared_axes,
        input_quantizer.one_rounding,
        name="kernel_quantizer",
    )
    if relaxation is not None:
        config["relaxation"] = relaxation
    return cls.from_config(config)


def fit_kernel_steps(model: keras.Model) -> None:
    """Set every learned kernel step to that of least squared error on its kernel."""
    for layer in model.layers:
        quantizer = getattr(layer, "kernel_quantizer", None)
        if quantizer is not None:
            quantizer.fit_steps(layer.kernel)


def warn_unquantized(graph: Graph) -> None:
    """Name in one warning the layers with kernels that stay float.

    They count at 32 x 32 bits in costs and budgets. A second warning names those whose
    operations cannot be counted.
    """
    found = float_layers(graph)
    if found:
        warnings.warn(
            f"Only {listed()} are quantized; these layers stay "
            f"float: {', '.join(sorted(map(str, found)))}, at 32 x 32 bits.",
            stacklevel=3,
        )
    warn_uncounted(found)
