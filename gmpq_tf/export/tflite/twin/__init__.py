"""The integer twin: a Keras model that computes the same integers as a file."""

from __future__ import annotations

import keras

from gmpq_tf.export.tflite.lowering import Lowered, lower
from gmpq_tf.export.tflite.region_parts import region_parts
from gmpq_tf.export.tflite.twin.operator import read_program
from gmpq_tf.export.tflite.twin.program import ProgramLayer
from gmpq_tf.graph import fill
from gmpq_tf.transform.rewrite import NamedOutputs

__all__ = ["integer_twin"]


def integer_twin(student: keras.Model, storage: str = "fast") -> keras.Model:
    """Builds a Keras model that computes exactly what the `.tflite` file computes.

    Every operator of the file is computed with the integers, the float32 multipliers
    and the roundings of XNNPACK: `clip(round(float32(sum) * s_x s_w / s_y) + z)`, with
    an exact sum, and halves rounded to even. So it tells what the file will decide, in
    batches and on any device. It cannot be trained, and later changes of the student's
    weights do not change it.

    Args:
        student: calibrated model from `gmpq_tf.quantize_model`.
        storage: storage of the file, as for `export_tflite`; all give the same
            integers.

    Returns:
        A model with the student's inputs and outputs; only a final softmax or sigmoid
        is computed in float, where runtimes differ in the last bits.

    Raises:
        ExportError: layers have no integer counterpart, or the arithmetic of an
            operator is not known; they are named.
    """
    parts, name = region_parts(student), f"{student.name}_twin"
    if parts is None:
        return twin_of(lower(student, storage), name)
    first, head = (
        twin_of(lower(part, storage), f"{part.name}_twin")
        for part in (parts.first, parts.head)
    )
    return parts.joined(first, head, name)


def twin_of(lowered: Lowered, name: str) -> keras.Model:
    """The twin of a file with float inputs and outputs.

    Args:
        lowered: the file.
        name: name of the twin.
    """
    graph = lowered.graph
    inputs = {
        index: keras.Input(batch_shape=graph.shapes[index], name=input_name)
        for index, input_name in zip(graph.inputs, graph.input_names, strict=True)
    }
    layer = ProgramLayer(read_program(lowered.content), name="operators")
    found = layer([inputs[index] for index in graph.inputs])
    structures = (
        fill(graph.input_structure, inputs),
        fill(graph.output_structure, dict(zip(graph.outputs, found, strict=True))),
    )
    return NamedOutputs(*structures, name=name, output_names=graph.output_names)
