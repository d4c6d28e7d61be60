"""Walks through a student and its float model side by side, unit by unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras

from gmpq_tf.graph import Call, Graph, is_searchable, read_graph, searchable_names
from gmpq_tf.inputs import InputError
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.batches import ModelInputs, input_batches
from gmpq_tf.transform.calibrate import (
    CalibrationError,
    check_calibrated,
    check_quantized,
    input_quantizers,
)
from gmpq_tf.transform.forward import LayerwiseRun
from gmpq_tf.transform.gates import split_gates
from gmpq_tf.transform.rewrite import (
    clone_layer,
    copy_weights,
    rebuild,
    split_activations,
)
from gmpq_tf.transform.units import Unit, units


@dataclass(frozen=True, eq=False)
class Pair:
    """A unit of the student, and the positions of calls in both graphs.

    Args:
        unit: unit of the student.
        student: call name -> its index in the student's graph.
        reference: call name -> its index in the float model's graph.
    """

    unit: Unit
    student: dict[str, int]
    reference: dict[str, int]

    @property
    def name(self) -> str:
        """Name of the layer with the kernel."""
        return self.unit.call.name

    @property
    def sum_call(self) -> Call:
        """The call before the activation: BatchNormalization, or the layer itself."""
        return self.unit.batch_norm or self.unit.call


class Walk:
    """Tensors of a student and of its float model on the same images.

    Args:
        student: from `quantize_model`, calibrated.
        model: the float model it was made of; not changed.
        dataset: images, as `calibrate` takes them.
        batches: how many batches to use; None: all.

    Raises:
        CalibrationError: the student is not calibrated, or of another model.
        InputError: there are no images, or they do not fit the student.
    """

    def __init__(
        self,
        student: keras.Model,
        model: keras.Model,
        dataset: Any,
        batches: int | None = None,
    ) -> None:
        check_pair(student, model)
        graph, other = read_graph(student), read_graph(reference_of(model))
        inputs = ModelInputs(graph)
        given = [inputs.structured(b) for b in input_batches(inputs, dataset, batches)]
        if not given:
            raise InputError(
                "Measuring needs at least one image. Received: a data set without any. "
                "Pass some hundred images."
            )
        self.student = LayerwiseRun(graph, given)
        self.reference = LayerwiseRun(other, given)
        self.pairs, self.shared = _pairs(graph, other)


def check_pair(student: keras.Model, model: keras.Model) -> None:
    """Requires a calibrated student and the float model that it was made of.

    Raises:
        CalibrationError: they are something else.
    """
    check_quantized(student, "The first model must be a quantized one.", "student")
    check_calibrated(student, "correcting a student")
    if input_quantizers(model):
        raise CalibrationError(
            "The second model must be the float one that the student was made of. "
            f"Received: model={model.name!r}, which holds quantizers. Pass the model "
            "that quantize_model was given."
        )
    names, others = searchable_names(student), searchable_names(model)
    if set(names) != set(others):
        wrong = sorted(set(names) ^ set(others))[0]
        raise CalibrationError(
            "Student and float model must have the same layers. "
            f"Received: {wrong!r}, which only one of them has. "
            f"{suggest(wrong, others if wrong in names else names)}"
        )


def reference_of(model: keras.Model) -> keras.Model:
    """A float model with the same calls as its student, except quantizers."""
    graph = split_gates(split_activations(read_graph(model)))

    def make_layer(call: Call) -> Any:
        layer = clone_layer(call)
        if call.split:
            layer.activation = keras.activations.linear
        return layer

    reference = rebuild(graph, model.name, make_layer)
    copy_weights(graph, reference)
    return reference


def _pairs(graph: Graph, other: Graph) -> tuple[list[Pair], list[str]]:
    """Units with kernels, and names of layers that are used more than once."""
    uses = Counter(id(call.layer) for call in graph.calls)
    student = {call.name: number for number, call in enumerate(graph.calls)}
    reference = {call.name: number for number, call in enumerate(other.calls)}
    pairs, shared = [], []
    for unit in units(graph):
        if not is_searchable(unit.call.layer):
            continue
        if all(uses[id(call.layer)] == 1 for call in unit.calls):
            pairs.append(Pair(unit, student, reference))
        elif unit.call.name not in shared:
            shared.append(unit.call.name)
    return pairs, shared


@contextmanager
def without_activation(*layers: Any) -> Iterator[None]:
    """Inside the block the layers compute without their activations."""
    kept = [getattr(layer, "activation", None) for layer in layers]
    for layer, activation in zip(layers, kept, strict=True):
        if activation is not None:
            layer.activation = keras.activations.linear
    try:
        yield
    finally:
        for layer, activation in zip(layers, kept, strict=True):
            if activation is not None:
                layer.activation = activation
