"""Cuts a file into pieces that can be timed separately.

A piece has the consecutive operators of one layer, such as the patches and the kernel
of a convolution, a pool or a sum. Each operator that requantizes a tensor is a piece of
its own. Pieces are cut from whole exported files, so everything that the export writes
can be timed.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.tflite.flatbuffer import operator_name, read_model
from gmpq_tf.export.tflite.flatbuffer.sharing import AlignedBuffer, pack_model
from gmpq_tf.export.tflite.lowering import Lowered

ALONE = "QUANTIZE"  # the operator that is always a piece of its own
# Options that do not change the time of an operator.
IGNORED = ("fusedActivationFunction",)


@dataclass(frozen=True)
class Piece:
    """Operators of a file that are timed together.

    Args:
        layer: the layer that wrote them; "": they convert an input or an output.
        operators: numbers of the operators in the file.
        key: shapes, types and options of all of them, in one line.
        kernel: whether the layer's kernel is among their inputs.
    """

    layer: str
    operators: tuple[int, ...]
    key: str
    kernel: bool = False


def pieces_of(lowered: Lowered) -> list[Piece]:
    """All pieces of a file, in the order of the file.

    Args:
        lowered: the file.
    """
    file = File(lowered.content)
    kernels = {kernel.tensor for kernel in lowered.kernels}
    found = []
    for layer, start, end in lowered.spans:
        for run in runs(file, range(start, end)):
            read = {t for number in run for t in file.operators[number].inputs}
            key = file.key(run)
            found.append(Piece(layer, tuple(run), key, bool(read & kernels)))
    return found


def runs(file: File, numbers: Sequence[int]) -> list[list[int]]:
    """Groups a layer's operators into pieces: requantization alone, others together.

    Args:
        file: the file.
        numbers: numbers of the layer's operators.
    """
    found: list[list[int]] = []
    together = False
    for number in numbers:
        alone = file.code(number) == ALONE
        if together and not alone:
            found[-1].append(number)
        else:
            found.append([number])
        together = not alone
    return found


class File:
    """A `.tflite` file that pieces are cut from.

    Args:
        content: its bytes.
    """

    def __init__(self, content: bytes) -> None:
        self.model = read_model(content)
        subgraph = self.model.subgraphs[0]
        self.operators, self.tensors = subgraph.operators, subgraph.tensors
        self.results = {int(t) for t in subgraph.outputs}

    def code(self, number: int) -> str:
        """Name of an operator, such as "CONV_2D"."""
        return operator_name(self.model, self.operators[number])

    def key(self, numbers: Sequence[int]) -> str:
        """All that determines the time of operators, in one line."""
        return " | ".join(self._key(number) for number in numbers)

    def _key(self, number: int) -> str:
        operator = self.operators[number]
        inputs = ", ".join(self._describe(t) for t in operator.inputs)
        outputs = ", ".join(self._describe(t) for t in operator.outputs)
        options = vars(operator.builtinOptions) if operator.builtinOptions else {}
        shown = [
            f"{name}={_plain(value)}"
            for name, value in sorted(options.items())
            if name not in IGNORED and np.any(value)
        ]
        tail = f" ({', '.join(shown)})" if shown else ""
        return f"{self.code(number)} {inputs} -> {outputs}{tail}"

    def _describe(self, number: int) -> str:
        tensor = self.tensors[number]
        size = "x".join(str(int(n)) for n in tensor.shape)
        text = f"{TYPES[tensor.type].lower()}[{size}]"
        data = self.data(number)
        if data is not None and tensor.type == schema.TensorType.INT32:
            scale = getattr(tensor.quantization, "scale", None)
            if scale is None or not len(scale):  # not a bias, but e.g. positions
                text += f"#{hashlib.sha256(data).hexdigest()[:8]}"
        return text

    def data(self, number: int) -> bytes | None:
        """The bytes of a constant tensor; None: the tensor is computed."""
        data = self.model.buffers[self.tensors[number].buffer].data
        return None if data is None else bytes(data)

    def cut(self, numbers: Sequence[int], copies: int = 1) -> bytes:
        """A file with several copies of some operators.

        Args:
            numbers: numbers of consecutive operators.
            copies: number of copies, which all read the same inputs.

        Returns:
            The bytes of the new file.
        """
        return _Cut(self, numbers).content(copies)


class _Cut:
    """A file made of some operators of another file."""

    def __init__(self, file: File, numbers: Sequence[int]) -> None:
        self.file = file
        self.operators = [file.operators[number] for number in numbers]
        made = [int(t) for o in self.operators for t in o.outputs]
        read = list(dict.fromkeys(int(t) for o in self.operators for t in o.inputs))
        inside = set(read) & set(made)
        self.shared = [t for t in read if t not in inside]
        self.results = [t for t in made if t not in inside] or made[-1:]
        self.tensors: list[Any] = []
        self.buffers = [AlignedBuffer()]

    def content(self, copies: int) -> bytes:
        shared = {t: self._tensor(t, str(t)) for t in self.shared}
        inputs = [shared[t] for t in self.shared if self.file.data(t) is None]
        operators, outputs = [], []
        for copy_number in range(copies):
            own = dict(shared)
            for operator in self.operators:
                for t in map(int, operator.outputs):
                    own[t] = self._tensor(t, f"{t}_{copy_number}")
                moved = copy.copy(operator)
                moved.inputs = [own[int(t)] for t in operator.inputs]
                moved.outputs = [own[int(t)] for t in operator.outputs]
                operators.append(moved)
            outputs += [own[t] for t in self.results]
        return self._packed(inputs, operators, outputs)

    def _tensor(self, number: int, name: str) -> int:
        tensor = copy.copy(self.file.tensors[number])
        data = self.file.data(number)
        tensor.name, tensor.shapeSignature, tensor.buffer = name, None, 0
        if data is not None:
            buffer = AlignedBuffer()
            buffer.data = data
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _packed(self, inputs: list, operators: list, outputs: list) -> bytes:
        subgraph = schema.SubGraphT()
        subgraph.name, subgraph.tensors = "main", self.tensors
        subgraph.inputs, subgraph.outputs = inputs, outputs
        subgraph.operators = operators
        model = schema.ModelT()
        model.version, model.subgraphs = 3, [subgraph]
        model.description = "made by gmpq_tf"
        model.operatorCodes = self.file.model.operatorCodes
        model.buffers = self.buffers
        return pack_model(model)


def _names(enumeration: type) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}


TYPES = _names(schema.TensorType)


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist() if isinstance(value, np.ndarray) else value
