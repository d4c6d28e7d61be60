"""Compares a file with its twin, operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import with_outputs
from gmpq_tf.export.tflite.runtime import TFLiteModel, to_input
from gmpq_tf.export.tflite.twin.operator import RANGES, Operator, read_program
from gmpq_tf.export.tflite.twin.program import prepare


@dataclass(frozen=True)
class TwinCheck:
    """The comparison of a file's integers with those of its twin.

    Args:
        tensors: number of tensors that were compared.
        codes: number of integers in them.
        off: number of integers that differ.
        names: (name, operator, share of integers) of tensors that differ, in the order
            of the file.
        largest: largest difference.
        unknown: reasons why integer operators were not compared, one for each.
    """

    tensors: int
    codes: int
    off: int
    names: tuple[tuple[str, str, float], ...]
    largest: int = 0
    unknown: tuple[str, ...] = ()


def compare_twin(
    content: bytes, arrays: Sequence[np.ndarray], kernels: str = "xnnpack"
) -> TwinCheck:
    """Runs a file and its twin on the same inputs, and compares every integer tensor.

    Each operator of the twin reads the tensors that the file's operator has read. So a
    difference is found at the operator that makes it, and without any the whole file
    computes the same as its twin.

    Args:
        content: the file's bytes.
        arrays: inputs in the order of the file, [B, ...] each; for a file with a fixed
            batch one batch is compared.
        kernels: kernels of the runtime, as for `TFLiteModel`.
    """
    program = read_program(content)
    tensors_of = [(*op.inputs, op.output) for op in program.operators]
    found = {t.number for tensors in tensors_of for t in tensors if t.data is None}
    numbers = sorted(found - {*program.inputs})
    model = TFLiteModel(with_outputs(content, numbers), kernels=kernels)
    if model.batch is not None:  # a full batch: tensors inside need not be per image
        rows: np.ndarray = np.arange(model.batch) % len(arrays[0])
        arrays = [array[rows] for array in arrays]
    given = [to_input(*pair) for pair in zip(model.inputs, arrays, strict=True)]
    stored = dict(zip(program.inputs, given, strict=True))
    stored |= dict(zip(numbers, model.stored(given), strict=True))
    tensors = codes = total = largest = 0
    names, unknown = [], []
    for op in program.operators:
        if op.output.kind == "FLOAT32":
            continue
        try:
            wanted = computed(op, stored)
        except ExportError as error:
            if op.output.kind in RANGES:  # others belong to layers computed in float
                unknown.append(str(error))
            continue
        have: np.ndarray = stored[op.output.number].astype(np.float32).ravel()
        distance = np.abs(have - wanted)
        tensors, codes = tensors + 1, codes + distance.size
        if off := int(np.count_nonzero(distance)):
            total, largest = total + off, max(largest, int(distance.max()))
            names.append((op.output.name, op.code, off / distance.size))
    return TwinCheck(tensors, codes, total, tuple(names), largest, tuple(unknown))


def computed(op: Operator, stored: dict[int, Any]) -> np.ndarray:
    """The twin's result for an operator, from the tensors that the file's one read.

    Args:
        op: the operator.
        stored: number of a tensor -> its content in the file.

    Returns:
        float32 [values].

    Raises:
        ExportError: the twin does not know the operator.
    """
    compute = prepare(op)
    read = [stored[t.number] for t in op.inputs if t.data is None]
    return np.asarray(compute(*(tf.cast(value, tf.float32) for value in read))).ravel()
