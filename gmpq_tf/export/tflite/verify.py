"""Compares the layers and tensors of a TFLite file with those of its Keras model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from gmpq_tf.export.integers.fold import trained_codes
from gmpq_tf.export.integers.grids import Grid
from gmpq_tf.export.integers.layouts import keras_layout
from gmpq_tf.export.tflite.flatbuffer import (
    read_model,
    stored_biases,
    stored_bytes,
    stored_codes,
    tensor_type,
    with_outputs,
)
from gmpq_tf.export.tflite.integer_graph import Check, Kernel
from gmpq_tf.export.tflite.lowering import Lowered
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.graph import infer
from gmpq_tf.kernel_kinds import KERNEL_KINDS

RANDOM_INPUTS = 64
LOCAL_IMAGES = 16
# Share of codes that may be one step off because of ties and of Keras's float sums, and
# how much more is allowed for each step of slack inside the operator. A wrong operator
# is off by far more. For kernels that are known to round once, `beyond` is checked
# instead.
OFF_TOLERANCE = 0.05
OFF_PER_SLACK = 4
FAR_TOLERANCE = 0.001
# Steps by which Keras's float32 may move a value close to a half; 2e-5 was measured.
FLOAT_STEPS = 1 / 64


@dataclass(frozen=True)
class LayerReport:
    """One layer of an exported model.

    Args:
        name: name of the layer.
        kind: stock Keras class of the layer.
        weight_bits: bits of the kernel in the policy.
        activation_bits: bits of the layer's input in the policy.
        stored_type: "INT8", "INT4" or "INT2".
        stored_bytes: bytes of the kernel in the file.
        code_factor: power of two by which codes are multiplied in the file (and their
            step divided); 1 without `scale_codes`.
        codes_equal: whether the file's codes are the trained ones times that factor
            (and -1 where BatchNormalization flips the sign of a channel), and the
            biases the folded ones.
        constant_channels: channels that BatchNormalization has switched off.
        output_agreement: share of output codes equal to Keras, given equal inputs.
    """

    name: str
    kind: str
    weight_bits: int
    activation_bits: int
    stored_type: str
    stored_bytes: int
    code_factor: int
    codes_equal: bool
    constant_channels: int
    output_agreement: float | None = None


@dataclass(frozen=True)
class Deviation:
    """Differences of one tensor between Keras and the file, given equal inputs.

    Args:
        name: name of the layer that makes it.
        kind: class of that layer.
        off: share of codes that differ.
        far: share of codes that differ by more than one step plus the slack.
        slack: steps by which rounding inside the operator may move a value.
        beyond: steps by which the worst code is farther from Keras's value than one
            rounding (and the slack) explains.
    """

    name: str
    kind: str
    off: float
    far: float
    slack: float
    beyond: float = 0.0

    @property
    def excessive(self) -> bool:
        """Whether the deviation is too large even for kernels that round twice."""
        return (
            self.off > OFF_TOLERANCE + OFF_PER_SLACK * self.slack
            or self.far > FAR_TOLERANCE
        )

    @property
    def wrong(self) -> bool:
        """Whether a code cannot result from rounding Keras's value once."""
        return self.beyond > FLOAT_STEPS


def layer_reports(
    lowered: Lowered, deviations: Iterable[Deviation]
) -> list[LayerReport]:
    """Reports of all layers with kernels, from the bytes of the file."""
    model = read_model(lowered.content)
    agreement = {d.name: 1 - d.off for d in deviations if d.kind != "InputQuantizer"}
    rows: dict[str, LayerReport] = {}
    for kernel in lowered.kernels:
        equal = codes_equal(model, kernel)
        before = rows.get(kernel.name)
        rows[kernel.name] = LayerReport(
            kernel.name,
            kernel.layer.searchable_kind,
            kernel.layer.kernel_quantizer.bits[0],
            kernel.layer.input_quantizer.bits[0],
            tensor_type(model, kernel.tensor),
            stored_bytes(model, kernel.tensor),
            kernel.folded.factor,
            equal and (before is None or before.codes_equal),
            int(np.sum(kernel.folded.signs == 0)),
            agreement.get(kernel.name),
        )
    return list(rows.values())


def codes_equal(model: Any, kernel: Kernel) -> bool:
    """Whether a stored kernel is the trained one, times its factor and signs.

    The stored biases must be the folded ones too: outputs do not show one that is off
    by a unit or two.
    """
    if not np.array_equal(stored_biases(model, kernel.bias), kernel.folded.bias):
        return False
    codes, _ = trained_codes(kernel.layer)
    shape = codes.shape
    if kernel.kind == "Dense":  # also convolutions that are stored as dense layers
        shape = (codes.size // shape[-1], shape[-1])
    stored = keras_layout(kernel.kind, stored_codes(model, kernel.tensor), shape)
    stored = stored.reshape(codes.shape)
    signs: np.ndarray = kernel.folded.signs.astype("int32")
    kind = KERNEL_KINDS[kernel.layer.searchable_kind]
    wanted = kind.columns(codes) * signs * kernel.folded.factor
    return bool(np.array_equal(kind.columns(stored), wanted))


def mean_deviations(
    lowered: Lowered, batches: Iterable[Sequence[np.ndarray]]
) -> list[Deviation]:
    """`local_deviations` averaged over batches of equal size.

    Args:
        lowered: the file and its graph.
        batches: each has one array [B, ...] for every input of the model.
    """
    found = [local_deviations(lowered, arrays) for arrays in batches]
    return [
        replace(
            same[0],
            off=float(np.mean([d.off for d in same])),
            far=float(np.mean([d.far for d in same])),
            beyond=max(d.beyond for d in same),
        )
        for same in zip(*found, strict=True)
    ]


def local_deviations(lowered: Lowered, arrays: Sequence[np.ndarray]) -> list[Deviation]:
    """Compares a file with Keras layer by layer, on equal inputs of each layer.

    Each Keras layer gets the inputs that the file's layer had, so an error shows at the
    layer that makes it.

    Args:
        lowered: the file and its graph.
        arrays: [B, ...] each, in the order of the model's inputs.
    """
    stored = stored_tensors(lowered, arrays)
    graph, found = lowered.graph, []
    shared = {c.index: c for c in lowered.checks if c.reader is None}
    private = {id(c.reader): c for c in lowered.checks if c.reader is not None}

    def replaced(check: Check, value: Any) -> Any:
        codes = stored[check.value.tensor]
        found.append(deviation_of(check, np.asarray(value), codes))
        return dequantize(check, codes).reshape(value.shape)

    tensors: dict[int, Any] = {}
    for index, array in zip(graph.inputs, arrays, strict=True):
        tensors[index] = np.asarray(array, graph.dtypes[index])
        if index in shared:
            tensors[index] = replaced(shared[index], tensors[index])
    for call in graph.calls:
        operands = {i: tensors[i] for i in call.inputs}
        if id(call) in private:
            check = private[id(call)]
            operands[check.index] = replaced(check, operands[check.index])
        result = infer(call, operands)
        for index, tensor in zip(call.outputs, keras.tree.flatten(result), strict=True):
            value = np.asarray(tensor)
            if index in shared:
                value = replaced(shared[index], value)
            tensors[index] = value
    return found


def stored_tensors(
    lowered: Lowered, arrays: Sequence[np.ndarray]
) -> dict[int, np.ndarray]:
    """Contents of all tensors to check, from a copy of the file that returns them.

    Args:
        lowered: the file and its graph.
        arrays: [B, ...] each, in the order of the model's inputs.

    Returns:
        Number of the tensor -> its integers, of its shape.
    """
    wanted = sorted({check.value.tensor for check in lowered.checks})
    content = with_outputs(lowered.content, wanted)
    model = TFLiteModel(content, kernels=lowered.runs_in)
    model.check(arrays)
    return dict(zip(wanted, model.stored(arrays), strict=True))


def deviation_of(check: Check, value: np.ndarray, stored: np.ndarray) -> Deviation:
    """Shares of the codes of a tensor that differ from the Keras value on its grid.

    Args:
        check: the tensor, its grid and its slack.
        value: the tensor as Keras computes it, [B, ...].
        stored: the integers of the file, of the same shape.
    """
    grid = check.value.grid
    assert grid is not None
    place = np.clip(value.astype("float64").ravel() / grid.step, grid.low, grid.high)
    codes: np.ndarray = stored.astype("int32").ravel() - check.value.zero_point
    off = np.abs(np.floor(place + 0.5) - codes)
    farthest = float(np.max(np.abs(place - codes), initial=0.0))
    return Deviation(
        check.name,
        check.kind,
        float(np.mean(off > 0)),
        float(np.mean(off > 1 + check.slack)),
        check.slack,
        max(0.0, farthest - 0.5 - check.slack),
    )


def dequantize(check: Check, stored: np.ndarray) -> np.ndarray:
    """The values that integers of a tensor stand for, float32 of the same shape."""
    grid = check.value.grid
    assert grid is not None
    codes: np.ndarray = stored.astype("float32") - check.value.zero_point
    return codes * np.float32(grid.step)


def random_inputs(
    student: Any, grids: Sequence[Grid], seed: int
) -> dict[str, np.ndarray]:
    """Random inputs by name, [64, ...], uniform over the calibrated range of each."""
    generator = np.random.default_rng(seed)
    return {
        tensor.name: generator.uniform(
            grid.low * grid.step,
            grid.high * grid.step,
            (RANDOM_INPUTS, *tensor.shape[1:]),
        ).astype("float32")
        for tensor, grid in zip(student.inputs, grids, strict=True)
    }


def as_list(value: Any) -> list:
    """The outputs of a model as a flat list."""
    return list(keras.tree.flatten(value))
