"""Compare a file with its twin, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gmpq_tf.export.tflite.flatbuffer import with_outputs
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.twin.operator import read_program
from gmpq_tf.export.tflite.twin.program import ProgramLayer


@dataclass(frozen=True)
class TwinCheck:
    """How many stored integers of a file its twin computes otherwise.

    Args:
        tensors: that were compared.
        codes: integers in all of them.
        off: of those, how many differ.
        names: tensors that differ: name, operator, share of integers; first ones first.
    """

    tensors: int
    codes: int
    off: int
    names: tuple[tuple[str, str, float], ...]


def compare_twin(
    content: bytes, arrays: Sequence[np.ndarray], kernels: str = "xnnpack"
) -> TwinCheck:
    """Run a file and its twin on the same inputs, and compare every integer tensor.

    Args:
        content: bytes of the file.
        arrays: [B, ...] each, in the order of the file's inputs; of a file with a fixed
            batch, one batch is compared.
        kernels: of the runtime, as `TFLiteModel` takes them.
    """
    program = read_program(content)
    made = [op for op in program.operators if op.output.kind != "FLOAT32"]
    numbers = [op.output.number for op in made]
    model = TFLiteModel(with_outputs(content, numbers), kernels=kernels)
    if model.batch is not None:  # a whole one: tensors inside may be no rows of images
        rows: np.ndarray = np.arange(model.batch) % len(arrays[0])
        arrays = [array[rows] for array in arrays]
    stored = model.stored(arrays)
    computed = ProgramLayer(program, numbers)(list(arrays))
    codes, off, names = 0, 0, []
    for op, have, want in zip(made, stored, computed, strict=True):
        differ = have.astype(np.float32).ravel() != np.asarray(want).ravel()
        codes, off = codes + differ.size, off + int(differ.sum())
        if differ.any():
            names.append((op.output.name, op.code, float(differ.mean())))
    return TwinCheck(len(made), codes, off, tuple(names))
