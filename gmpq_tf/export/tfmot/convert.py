"""Converts students to tf_keras models wrapped by TFMOT, and back."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.layouts import check_layer
from gmpq_tf.export.tflite.exporter import ExportReport
from gmpq_tf.export.tflite.exporter import export_tflite as export_student
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.verify import as_list, random_inputs
from gmpq_tf.export.tfmot.fake_quantizers import (
    InputFakeQuantizer,
    KernelFakeQuantizer,
)
from gmpq_tf.export.tfmot.graphs import build_tf_keras, read_tf_keras
from gmpq_tf.export.tfmot.layers import float_layer, quantized_layer, student_layer
from gmpq_tf.export.tfmot.libraries import libraries
from gmpq_tf.export.tfmot.quantize_config import PolicyQuantizeConfig
from gmpq_tf.export.tfmot.weights import copy_layer, copy_weights
from gmpq_tf.graph import (
    Call,
    is_searchable,
    read_graph,
)
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.transform.batches import ModelInputs
from gmpq_tf.transform.calibrate import input_quantizers, is_calibrated
from gmpq_tf.transform.quantize import quantize_model
from gmpq_tf.transform.rewrite import rebuild, split_activations

# The float sums of both libraries differ in the last bits, so a code may flip, and a
# few outputs may differ by more than the tolerance; a wrong layer would change most of
# them.
TOLERANCE = 1e-4
FLIPPED = 0.05


def quantize_configs(policy: BitwidthPolicy) -> dict[str, Any]:
    """A `QuantizeConfig` for each layer of a policy, to annotate tf_keras layers with.

    This is for your own tf_keras models: `quantize_annotate_layer(layer,
    configs[name])`, then TFMOT's `quantize_apply`, which adds its own 8-bit quantizers
    elsewhere. Ranges and steps are set by the first training batch and learned from
    then on. To keep those of a trained student use `quantize_apply` of this module.

    Args:
        policy: bits of each layer.

    Returns:
        Layer name -> `tfmot.quantization.keras.QuantizeConfig`, for one layer each.

    Raises:
        ExportError: TFMOT or tf_keras is missing.
    """
    libraries()
    return {
        name: PolicyQuantizeConfig(
            KernelFakeQuantizer(bits.weight_bits),
            InputFakeQuantizer(bits.activation_bits),
        )
        for name, bits in policy.items()
    }


def quantize_apply(model: keras.Model, policy: BitwidthPolicy) -> Any:
    """The quantized model as a tf_keras model, its layers wrapped by TFMOT.

    It computes and trains like the student. Kernels, biases, BatchNormalization,
    learned steps and ranges are copied. Layers have TFMOT's prefix `quant_` before
    their names. TFMOT trains the kernels of frozen layers too.

    Args:
        model: Keras 3 student from `gmpq_tf.quantize_model`; or a float model, which is
            quantized first. Ranges that were not calibrated are set by the first
            training batch.
        policy: bits of each layer, those of the student.

    Returns:
        A functional `tf_keras.Model`, not compiled.

    Raises:
        ExportError: TFMOT or tf_keras is missing, TFLite or tf_keras lacks a layer, or
            the policy is not the student's.
        PolicyError: the policy is for other layers.
    """
    student = _student_for(model, policy)
    graph = read_graph(student)
    quantized = build_tf_keras(graph, student.name, quantized_layer)
    copy_weights(graph, quantized)
    return quantized


def to_tf_keras(model: keras.Model) -> Any:
    """A Keras 3 model as a float tf_keras model, weights copied, quantizers left out.

    Args:
        model: functional float model, or student from `gmpq_tf.quantize_model`.

    Returns:
        A functional `tf_keras.Model`.

    Raises:
        ExportError: TFMOT or tf_keras is missing, or TFLite or tf_keras lacks a layer.
    """
    graph = split_activations(read_graph(model))
    converted = build_tf_keras(graph, model.name, float_layer)
    copy_weights(graph, converted)
    return converted


def to_student(model: Any) -> keras.Model:
    """The Keras 3 student of a tf_keras model: inverse of `quantize_apply`.

    Args:
        model: from `quantize_apply`, trained or not.

    Returns:
        A Keras 3 model as from `gmpq_tf.quantize_model`, with the weights, steps and
        ranges of the tf_keras model.

    Raises:
        ExportError: the model was not made by `quantize_apply`.
    """
    graph = read_tf_keras(model)
    student = rebuild(graph, model.name, lambda call: student_layer(call, graph))
    for call in graph.calls:
        copy_layer(call.layer, student.get_layer(call.name))
    return student


def export_tflite(
    model: Any, path: str | os.PathLike[str], verify_data: Any = None, **options: Any
) -> ExportReport:
    """Writes a tf_keras model as TFLite, with the guarantees of the Keras 3 exporter.

    The stored codes are those of the tf_keras model, and the file is checked on data.
    To round biases to the accumulators' grid first, call `to_student`,
    `gmpq_tf.snap_biases` and the Keras 3 exporter one after the other.

    Args:
        model: a trained model from `quantize_apply`.
        path: the `.tflite` file to create or to replace.
        verify_data: as for the Keras 3 `export_tflite`.
        **options: other arguments of the Keras 3 `export_tflite`.

    Returns:
        An `ExportReport`.

    Raises:
        ExportError: as for the Keras 3 `export_tflite`; or the Keras 3 model does not
            compute the same as the tf_keras model.
    """
    student = to_student(model)
    if is_calibrated(student):  # the exporter says what to do if not
        _check_equal(model, student)
    return export_student(student, path, verify_data=verify_data, **options)


def _student_for(model: Any, policy: BitwidthPolicy) -> keras.Model:
    if not isinstance(model, keras.Model):
        raise ExportError(
            "model must be a Keras 3 model. "
            f"Received: model={type(model).__name__}. Pass what "
            "gmpq_tf.quantize_model(model, policy) returned."
        )
    policy.check_model(model)
    if not input_quantizers(model):
        return quantize_model(model, policy)
    for call in read_graph(model).calls:
        if is_searchable(call.layer):
            check_layer(call)
            _check_bits(call, policy)
    return model


def _check_bits(call: Call, policy: BitwidthPolicy) -> None:
    layer, bits = call.layer, policy[call.name]
    has = (layer.kernel_quantizer.bits[0], layer.input_quantizer.bits[0])
    if has != (bits.weight_bits, bits.activation_bits):
        raise ExportError(
            "The policy must be the one that the student was made with. "
            f"Received: layer={call.name!r} with W{has[0]}/A{has[1]}, policy "
            f"W{bits.weight_bits}/A{bits.activation_bits}. Quantize the float model "
            "with this policy, or pass the student's."
        )


def _check_equal(model: Any, student: keras.Model) -> None:
    """Refuses a student that does not compute the same as the tf_keras model."""
    given = random_inputs(student, lower(student).input_grids, seed=0)
    inputs = ModelInputs(read_tf_keras(model)), ModelInputs(read_graph(student))
    both = (
        as_list(m(i.structured(i.read(given)), training=False))
        for m, i in zip((model, student), inputs, strict=True)
    )
    for outputs in zip(*both, strict=True):
        want, have = map(np.asarray, outputs)
        limit = TOLERANCE * max(1.0, float(np.abs(want).max()))
        moved = float(np.mean(np.abs(want - have) > limit))
        if moved > FLIPPED:
            raise ExportError(
                "The Keras 3 model must compute what the tf_keras model does. "
                f"Received: model={model.name!r}, of whose outputs {moved:.1%} differ. "
                "Nothing was written; please report the model's layers."
            )
