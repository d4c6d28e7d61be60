"""The operators of a file, read back from its bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import read_model, stored_codes, tensor_type

CODE_NAMES = {
    v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)
}
RANGES = {"INT8": (-128, 127), "UINT8": (0, 255)}
PLAIN = {"INT32": np.int32, "FLOAT32": np.float32}
# Computes an operator from the tensors that it reads, without its constants.
Compute = Callable[..., Any]


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Args:
        number: number of the tensor in the file.
        name: name in the file.
        kind: type, e.g. "INT8".
        shape: shape in the file, where an open batch is 1.
        scale: steps, float32 [1] or [channels]; empty for plain numbers.
        zero_point: the stored integer of the value 0.
        data: content of a constant; None: the tensor is computed.
    """

    number: int
    name: str
    kind: str
    shape: tuple[int, ...]
    scale: np.ndarray
    zero_point: int
    data: np.ndarray | None

    @property
    def step(self) -> np.float32:
        """The step of a tensor that has one for all channels.

        Raises:
            ExportError: the tensor holds plain numbers, as shapes do.
        """
        if not self.scale.size:
            raise ExportError(
                "Operands must be on a grid. "
                f"Received: {self.name!r} of plain numbers. Run the file itself."
            )
        return np.float32(self.scale[0])

    @property
    def constant(self) -> np.ndarray:
        """The content of a constant, of its shape.

        Raises:
            ExportError: the tensor is computed.
        """
        if self.data is None:
            raise ExportError(
                "Kernels, biases and shapes must be constants of the file. "
                f"Received: {self.name!r}, which is computed. Run the file itself."
            )
        return self.data

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer of its type."""
        return RANGES[self.kind]


@dataclass(frozen=True)
class Operator:
    """An operator of a file; see the schema of TFLite for its options."""

    code: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    options: Any

    def unsupported(self, what: str) -> ExportError:
        """The error that the twin does not support this operator, with the reason."""
        return ExportError(
            "The integer twin must know the arithmetic of every operator. "
            f"Received: {self.code} that makes {self.output.name!r}, {what}. Run the "
            "file itself."
        )


@dataclass(frozen=True)
class Program:
    """A whole file: its operators in the order in which they run."""

    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_program(content: bytes) -> Program:
    """The operators of a file's bytes.

    Raises:
        ExportError: the bytes are not a TFLite file.
    """
    model = read_model(content)
    graph = model.subgraphs[0]
    tensors = [_tensor(model, number) for number in range(len(graph.tensors))]
    codes = [CODE_NAMES[code.builtinCode] for code in model.operatorCodes]
    operators = tuple(
        Operator(
            codes[op.opcodeIndex],
            tuple(tensors[number] for number in op.inputs if number >= 0),
            tensors[op.outputs[0]],
            op.builtinOptions,
        )
        for op in graph.operators
    )
    return Program(operators, _numbers(graph.inputs), _numbers(graph.outputs))


def _numbers(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _tensor(model: Any, number: int) -> Tensor:
    entry = model.subgraphs[0].tensors[number]
    meaning = entry.quantization
    scale, points = ([], [])
    if meaning is not None and meaning.scale is not None:
        scale, points = meaning.scale, meaning.zeroPoint
    return Tensor(
        number,
        (entry.name or b"").decode() or f"tensor {number}",
        tensor_type(model, number),
        _numbers(entry.shape if entry.shape is not None else ()),
        np.asarray(scale, np.float32),
        int(points[0]) if len(points) else 0,
        _data(model, number),
    )


def _data(model: Any, number: int) -> np.ndarray | None:
    entry = model.subgraphs[0].tensors[number]
    if model.buffers[entry.buffer].data is None:
        return None
    kind = tensor_type(model, number)
    if kind in ("INT8", "INT4", "INT2"):
        return stored_codes(model, number)
    data = bytes(bytearray(model.buffers[entry.buffer].data))
    if kind not in PLAIN:  # of operators in float, which are left to the runtime
        return np.frombuffer(data, np.uint8)
    shape = entry.shape if entry.shape is not None else ()
    return np.frombuffer(data, PLAIN[kind]).reshape(shape)
