"""The float model of a student, as a TFLite file made by TensorFlow's converter."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.fold import normalization, trained_codes
from gmpq_tf.export.integers.layouts import check_layer
from gmpq_tf.graph import (
    Call,
    Graph,
    GraphError,
    Ref,
    free_name,
    is_searchable,
    read_graph,
)
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layer_kinds import Role
from gmpq_tf.transform.rewrite import clone_layer, copy_weights, rebuild
from gmpq_tf.transform.units import unit_of

# A step with so many bits times a 7-bit code is exact in float32 (24 bits), and so are
# the differences of such products.
STEP_MANTISSA = 17
SMALLEST_STEP = 1e-8  # the LiteRT quantizer treats differences of 1e-9 as zero


@dataclass(frozen=True)
class FloatKernel:
    """The kernel of one use of a layer, as the float file stores it.

    Args:
        name: name of the layer in the student.
        kind: a name in `KERNEL_KINDS`.
        codes: trained codes in the layout of Keras; negated in channels where
            BatchNormalization has a negative factor, 0 where that is 0.
        kernel: `codes * step`, float32, with BatchNormalization folded into the step.
        bias: bias with BatchNormalization folded in, float32 [C].
        per_tensor: whether all channels have the same step.
    """

    name: str
    kind: str
    codes: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    per_tensor: bool

    @property
    def groups(self) -> np.ndarray:
        """Absolute codes in groups that share a step, [steps, weights per step]."""
        codes = np.abs(self.codes.astype("int32"))
        together = self.per_tensor
        return (
            codes.reshape(1, -1)
            if together
            else KERNEL_KINDS[self.kind].columns(codes).T
        )


class FoldedAway(keras.layers.Identity):
    """Identity in place of quantizers, and of BatchNormalization that is folded."""


def float_tflite(model: keras.Model) -> bytes:
    """The float `.tflite` of a student, from which its codes can be recovered.

    Kernels are trained codes times steps, BatchNormalization is folded in, and
    activations are not quantized. Steps are rounded to 17 bits (4e-6 of their value),
    so that `code * step` is exact, and a tool can find the step as the difference of
    two weights.

    Args:
        model: from `gmpq_tf.quantize_model`, fine-tuned.

    Returns:
        The file's bytes, made by TensorFlow's converter. It sorts inputs by name; the
        file's signature has their names.

    Raises:
        ExportError: the model is not quantized, or the converter refuses it.
    """
    graph, kernels = float_graph(model)
    float_model = rebuild(graph, model.name, _make_layer)
    copy_weights(graph, float_model)
    searchable = [call for call in graph.calls if is_searchable(call.layer)]
    for call, kernel in zip(searchable, kernels, strict=True):
        call.layer.set_weights([kernel.kernel, kernel.bias])
    with tempfile.TemporaryDirectory() as folder:
        float_model.export(folder, verbose=False)
        try:
            return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
        except Exception as error:  # the converter raises many classes
            raise ExportError(_refused(model, error)) from error


def _refused(model: keras.Model, error: Exception) -> str:
    """The converter's message, shortened to its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "error:" in line] or lines or [repr(error)]
    return (
        "TensorFlow's converter must accept the float model. "
        f"Received: model={model.name!r} ({causes[0][:200]}). Replace the layer it "
        "names, or use export_tflite, which needs no converter."
    )


def float_graph(model: Any) -> tuple[Graph, list[FloatKernel]]:
    """The student's graph without quantizers, and its kernels in the same order.

    Each use of a convolution or dense layer gets a stock layer of its own, because
    the BatchNormalization folded into it may differ.

    Raises:
        ExportError: the model has no graph, or a layer cannot be exported.
    """
    try:
        graph = read_graph(model)
    except GraphError as error:
        raise ExportError(str(error)) from error
    taken = {call.name for call in graph.calls}
    together = unit_of(graph)
    norms = {i: u.batch_norm for i, u in together.items() if u.call.role is Role.KERNEL}
    gone = {id(norm) for norm in norms.values() if norm is not None}
    calls, kernels, seen = [], [], set()
    for call in graph.calls:
        name = call.name
        if call.role is Role.QUANTIZER or id(call) in gone:
            name = free_name(f"{name}_gone", taken)
            args = (Ref(call.inputs[0]),)
            call = replace(
                call, layer=FoldedAway(name=name), name=name, args=args, kwargs={}
            )
        elif is_searchable(call.layer):
            check_layer(call)
            kernels.append(float_kernel(call, norms[id(call)]))
            name = free_name(name, taken) if name in seen else name
            seen.add(call.name)
            call = replace(call, layer=_stock_layer(call, name), name=name)
        taken.add(name)
        calls.append(call)
    return replace(graph, calls=calls), kernels


def float_kernel(call: Call, norm: Call | None) -> FloatKernel:
    """Kernel and bias of a call, with the BatchNormalization after it folded in."""
    layer = call.layer
    codes, step = trained_codes(layer)
    factor, offset = np.ones(step.size), np.zeros(step.size)
    if norm is not None:
        factor, offset = normalization(norm.layer, step.size)
    bias = np.asarray(layer.bias, "float64") if layer.use_bias else 0.0
    scale = _rounded(step * np.abs(factor))
    signs = np.where(scale > SMALLEST_STEP, np.sign(factor), 0).astype("int8")
    kind = KERNEL_KINDS[call.kind]
    columns = kind.columns(codes) * signs
    return FloatKernel(
        call.name,
        call.kind,
        kind.from_columns(columns, codes.shape),
        kind.from_columns(columns * scale, codes.shape).astype("float32"),
        (bias * factor + offset).astype("float32"),
        norm is None and kind.one_step and bool(np.all(step == step[0])),
    )


def _rounded(step: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(step)
    return np.ldexp(np.round(mantissa * 2**STEP_MANTISSA), exponent - STEP_MANTISSA)


def _stock_layer(call: Call, name: str) -> Any:
    config = call.layer.get_config()
    for key in ("input_quantizer", "kernel_quantizer"):
        config.pop(key)
    stock = getattr(keras.layers, call.kind)
    return stock.from_config({**config, "name": name, "use_bias": True})


def _make_layer(call: Call) -> Any:
    """The layer itself if it was made for the float model, else a copy."""
    own = is_searchable(call.layer) or isinstance(call.layer, FoldedAway)
    return call.layer if own else clone_layer(call)
