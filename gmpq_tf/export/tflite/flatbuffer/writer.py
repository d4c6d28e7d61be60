"""Writes TFLite files with the object API of their schema.

A file has one subgraph: tensors, which point to numbered buffers with their constants,
and operators, which point to tensors and to numbered operator codes. `FileBuilder`
numbers these as they are added, and shares equal constants.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.integers.grids import Quantization
from gmpq_tf.export.tflite.flatbuffer.reader import METADATA_NAME
from gmpq_tf.export.tflite.flatbuffer.sharing import (
    AlignedBuffer,
    SharedOptions,
    SharedQuantization,
    SharedTensor,
    pack_model,
)

# The first version of each operator with 8-bit operands; INT4 kernels need later ones.
VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CAST": 1,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "GATHER": 2,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "MIRROR_PAD": 2,
    "MUL": 2,
    "PAD": 2,
    "QUANTIZE": 1,
    "RELU": 2,
    "RELU6": 2,
    "RESHAPE": 1,
    "RESIZE_NEAREST_NEIGHBOR": 2,
    "SLICE": 2,
    "SOFTMAX": 2,
    "SPACE_TO_DEPTH": 2,
    "TRANSPOSE": 2,
    "TRANSPOSE_CONV": 3,
}
CUSTOM, CUSTOM_VERSION = schema.BuiltinOperator.CUSTOM, 1
NUMPY_TYPES = {"INT8": np.int8, "INT32": np.int32, "FLOAT32": np.float32}


class FileBuilder:
    """Collects the tensors and operators of a TFLite file."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.buffers = [AlignedBuffer()]  # number 0 is "no data" by definition
        self._codes: dict[tuple[str, int], int] = {}
        self._buffer_of: dict[bytes, int] = {}
        self._names: set[str] = set()
        self._integers: dict[bytes, int] = {}

    def tensor(
        self,
        name: str | None,
        shape: Sequence[int | None],
        kind: str,
        quantization: Quantization | None = None,
        data: bytes | None = None,
    ) -> int:
        """Adds a tensor.

        Args:
            name: name of the tensor; a number is added if it is taken. None: no name.
            shape: None stands for the batch, which may be resized.
            kind: name in the schema's `TensorType`, e.g. `"INT8"`.
            quantization: meaning of its integers; None: plain numbers.
            data: content of a constant, little-endian; None: the tensor is computed.

        Returns:
            The tensor's number.
        """
        tensor = SharedTensor()
        tensor.name = None if name is None else self._free_name(name)
        tensor.shape = [1 if size is None else int(size) for size in shape]
        if None in shape:
            tensor.shapeSignature = [-1 if d is None else int(d) for d in shape]
        tensor.type = getattr(schema.TensorType, kind)
        tensor.hasRank = True
        tensor.buffer = 0 if data is None else self._buffer(data)
        if quantization is not None:
            tensor.quantization = _pack_quantization(quantization)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(
        self,
        name: str | None,
        values: np.ndarray,
        quantization: Quantization | None = None,
    ) -> int:
        """Adds a constant of int8, int32 or float32, any shape; returns its number."""
        kinds = {np.dtype(t): kind for kind, t in NUMPY_TYPES.items()}
        data = np.ascontiguousarray(values).tobytes()
        return self.tensor(name, values.shape, kinds[values.dtype], quantization, data)

    def integers(self, values: Any) -> int:
        """Number of a constant int32 operand, such as a shape; equal ones are one."""
        array = np.asarray(values, np.int32)
        key = bytes(str(array.shape), "ascii") + array.tobytes()
        if key not in self._integers:
            self._integers[key] = self.constant(None, array)
        return self._integers[key]

    def operator(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Any = None,
        version: int | None = None,
    ) -> None:
        """Adds an operator; `code` is a name in the schema's `BuiltinOperator`."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(code, version or VERSIONS[code])
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = SharedOptions(options)
        self.operators.append(operator)

    def custom(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: bytes
    ) -> None:
        """Adds a custom operator, which runtimes know by name, with its options."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(name, CUSTOM_VERSION)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        operator.customOptions = np.frombuffer(options, np.uint8)
        self.operators.append(operator)

    def finish(
        self,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        metadata: Mapping[str, Any],
        entries: Mapping[str, bytes] | None = None,
    ) -> bytes:
        """Writes the file.

        Args:
            inputs: name -> tensor number, in the order of the model's inputs.
            outputs: name -> tensor number, in the order of the model's outputs.
            metadata: stored as JSON; `read_metadata` returns it.
            entries: further metadata, name -> content.

        Returns:
            The file's bytes.
        """
        model = schema.ModelT()
        model.version = 3
        model.description = "made by gmpq_tf"
        self._forget_batch({*inputs.values(), *outputs.values()})
        self._name_outputs(outputs, set(inputs.values()))
        model.subgraphs = [self._subgraph(inputs, outputs)]
        model.signatureDefs = [_signature(inputs, outputs)]
        model.operatorCodes = [_operator_code(*key) for key in self._codes]
        contents = {METADATA_NAME: json.dumps(metadata).encode("utf-8")}
        contents.update(entries or {})
        model.metadata = [self._entry(*item) for item in contents.items()]
        model.buffers = self.buffers
        return pack_model(model)

    def _entry(self, name: str, content: bytes) -> Any:
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(content)
        return entry

    def _forget_batch(self, kept: set[int]) -> None:
        """Keeps the mark of an open batch (shape signature) for some tensors only.

        Runtimes derive the shapes of the others, except for results of SLICE.
        """
        for operator in self.operators:
            if operator.opcodeIndex == self._codes.get(("SLICE", VERSIONS["SLICE"])):
                kept.update(operator.outputs)
        for number in set(range(len(self.tensors))) - kept:
            self.tensors[number].shapeSignature = None

    def _name_outputs(self, outputs: Mapping[str, int], inputs: set[int]) -> None:
        """Gives output tensors the model's names; a tensor with such a name swaps it.

        (An activation that was split from its layer is named like the layer, with a
        suffix, but the output is that of the layer.)
        """
        numbers = {tensor.name: i for i, tensor in enumerate(self.tensors)}
        for name, number in outputs.items():
            other = numbers.get(name, number)
            if not inputs & {number, other}:
                own, tensor = self.tensors[number], self.tensors[other]
                tensor.name, own.name = own.name, name
                numbers[tensor.name], numbers[name] = other, number

    def _subgraph(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
        subgraph = schema.SubGraphT()
        subgraph.name = "main"
        subgraph.tensors, subgraph.operators = self.tensors, self.operators
        subgraph.inputs, subgraph.outputs = (
            list(inputs.values()),
            list(outputs.values()),
        )
        return subgraph

    def _code(self, code: str, version: int) -> int:
        return self._codes.setdefault((code, version), len(self._codes))

    def _buffer(self, data: bytes) -> int:
        """Number of a buffer that holds `data`; equal constants share one."""
        if data not in self._buffer_of:
            buffer = AlignedBuffer()
            buffer.data = data
            self.buffers.append(buffer)
            self._buffer_of[data] = len(self.buffers) - 1
        return self._buffer_of[data]

    def _free_name(self, name: str) -> str:
        free, number = name, 0
        while free in self._names:
            number += 1
            free = f"{name}_{number}"
        self._names.add(free)
        return free


def _pack_quantization(quantization: Quantization) -> Any:
    packed = SharedQuantization()
    packed.scale = list(quantization.scale)
    packed.zeroPoint = [quantization.zero_point] * len(quantization.scale)
    packed.quantizedDimension = quantization.axis
    return packed


def _operator_code(code: str, version: int) -> Any:
    packed = schema.OperatorCodeT()
    if not hasattr(schema.BuiltinOperator, code):
        packed.customCode = code
    packed.builtinCode = getattr(schema.BuiltinOperator, code, CUSTOM)
    packed.deprecatedBuiltinCode = min(packed.builtinCode, 127)
    packed.version = version
    return packed


def _signature(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    signature.subgraphIndex = 0
    signature.inputs = [_tensor_map(*item) for item in inputs.items()]
    signature.outputs = [_tensor_map(*item) for item in outputs.items()]
    return signature


def _tensor_map(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry
