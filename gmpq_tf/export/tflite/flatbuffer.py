"""Write and read TFLite files with the object API of their schema."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Quantization
from gmpq_tf.files import parse_json

METADATA_NAME = "gmpq_tf"
FILE_IDENTIFIER = b"TFL3"
# The version of each operator that first had 8-bit operands; INT4 kernels ask for more.
VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 4,
    "GATHER": 2,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
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
}
NUMPY_TYPES = {"INT8": np.int8, "INT32": np.int32, "FLOAT32": np.float32}


class AlignedBuffer(schema.BufferT):
    """A buffer at a multiple of 16 bytes, as kernels on some processors require."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        """Write the buffer; the name is the schema's."""
        data = None if self.data is None else _aligned_vector(builder, self.data)
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class SharedTensor(schema.TensorT):
    """A tensor whose shape is written once, however many tensors have it."""

    def Pack(self, builder: SharingBuilder) -> int:  # noqa: N802
        """Write the tensor; the name is the schema's."""
        name = None if self.name is None else builder.CreateString(self.name)
        shape = builder.vector(np.asarray(self.shape, np.int32))
        signature = None
        if self.shapeSignature is not None:
            signature = builder.vector(np.asarray(self.shapeSignature, np.int32))
        quantization = self.quantization and self.quantization.Pack(builder)
        schema.TensorStart(builder)
        schema.TensorAddShape(builder, shape)
        schema.TensorAddType(builder, self.type)
        schema.TensorAddBuffer(builder, self.buffer)
        schema.TensorAddHasRank(builder, self.hasRank)
        if name is not None:
            schema.TensorAddName(builder, name)
        if quantization:
            schema.TensorAddQuantization(builder, quantization)
        if signature is not None:
            schema.TensorAddShapeSignature(builder, signature)
        return schema.TensorEnd(builder)


class SharedQuantization(schema.QuantizationParametersT):
    """Quantization that is written once, however many tensors have it, and its vectors.

    The zero points of a kernel and its bias are eight bytes of zero a channel each.
    """

    def Pack(self, builder: SharingBuilder) -> int:  # noqa: N802
        """Write the parameters; the name is the schema's."""
        scale = builder.vector(np.asarray(self.scale, np.float32))
        zero_point = builder.vector(np.asarray(self.zeroPoint, np.int64))
        key = (scale, zero_point, self.quantizedDimension)
        if key not in builder.parameters:
            builder.parameters[key] = self._pack(builder, scale, zero_point)
        return builder.parameters[key]

    def _pack(self, builder: SharingBuilder, scale: int, zero_point: int) -> int:
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scale)
        schema.QuantizationParametersAddZeroPoint(builder, zero_point)
        schema.QuantizationParametersAddQuantizedDimension(
            builder, self.quantizedDimension
        )
        return schema.QuantizationParametersEnd(builder)


class SharedOptions:
    """Options that are written once, however many operators have them."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def Pack(self, builder: SharingBuilder) -> int:  # noqa: N802
        """Write the options; the name is the schema's."""
        key = (type(self.options).__name__, repr(sorted(vars(self.options).items())))
        if key not in builder.options:
            builder.options[key] = self.options.Pack(builder)
        return builder.options[key]


class SharingBuilder(flatbuffers.Builder):
    """A builder that remembers where it wrote which vector."""

    def __init__(self) -> None:
        super().__init__(1 << 16)
        self.written: dict[tuple[str, bytes], int] = {}
        self.parameters: dict[tuple[int, int, int], int] = {}
        self.options: dict[tuple[str, str], int] = {}

    def vector(self, values: np.ndarray) -> int:
        """Offset of a vector with these values."""
        key = (values.dtype.str, values.tobytes())
        if key not in self.written:
            self.written[key] = self.CreateNumpyVector(values)
        return self.written[key]


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
        """Add a tensor.

        Args:
            name: wanted name; a number is added where it is taken. None: no name.
            shape: None stands for the batch, which may be resized.
            kind: name in the schema's `TensorType`, e.g. `"INT8"`.
            quantization: meaning of its integers; None: plain numbers.
            data: content of a constant, little-endian; None: computed.

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
        """Add a constant tensor of int8, int32 or float32 values."""
        kinds = {np.dtype(t): kind for kind, t in NUMPY_TYPES.items()}
        data = np.ascontiguousarray(values).tobytes()
        return self.tensor(name, values.shape, kinds[values.dtype], quantization, data)

    def integers(self, values: Any) -> int:
        """A constant int32 operand, such as a shape; equal ones are one tensor."""
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
        """Add an operator; `code` is a name in the schema's `BuiltinOperator`."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(code, version or VERSIONS[code])
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = SharedOptions(options)
        self.operators.append(operator)

    def finish(
        self,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        metadata: Mapping[str, Any],
        entries: Mapping[str, bytes] | None = None,
    ) -> bytes:
        """Write the file.

        Args:
            inputs: name -> tensor number, in the order of the model's inputs.
            outputs: likewise.
            metadata: stored as JSON; `read_metadata` gives it back.
            entries: more metadata, name -> content.

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
        return _pack(model)

    def _entry(self, name: str, content: bytes) -> Any:
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(content)
        return entry

    def _forget_batch(self, kept: set[int]) -> None:
        """Say only of some tensors that a size may vary; that of others follows.

        Built-in SLICE wants to be told of its result.
        """
        for operator in self.operators:
            if operator.opcodeIndex == self._codes.get(("SLICE", VERSIONS["SLICE"])):
                kept.update(operator.outputs)
        for number in set(range(len(self.tensors))) - kept:
            self.tensors[number].shapeSignature = None

    def _name_outputs(self, outputs: Mapping[str, int], inputs: set[int]) -> None:
        """Give result tensors the model's names; one that has such a name gives it up.

        An activation split from its layer has the layer's name with a suffix.
        """
        numbers = {tensor.name: i for i, tensor in enumerate(self.tensors)}
        for name, number in outputs.items():
            other = numbers.get(name, number)
            if not inputs & {number, other}:
                own, tensor = self.tensors[number], self.tensors[other]
                tensor.name, own.name = own.name, name

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


def pack_int4(codes: np.ndarray) -> bytes:
    """Store codes -8..7 two a byte, the first in the low nibble; an odd one alone."""
    flat: np.ndarray = codes.astype(np.int8).ravel()
    flat = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & 0xF
    return (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()


def unpack_int4(data: np.ndarray, count: int) -> np.ndarray:
    """Inverse of `pack_int4`: the first `count` codes, int8."""
    data = data.astype(np.uint8)
    nibbles = np.stack([data & 0xF, data >> 4], axis=-1).ravel()[:count]
    return ((nibbles.astype(np.int8) ^ 8) - 8).astype(np.int8)


def pack_int2(codes: np.ndarray) -> bytes:
    """Store codes -2..1 four a byte, the first in the lowest bits."""
    flat: np.ndarray = codes.astype(np.int8).ravel()
    flat = np.append(flat, np.zeros(-flat.size % 4, np.int8)).view(np.uint8) & 0x3
    shifts: np.ndarray = np.arange(0, 8, 2, dtype=np.uint8)
    return np.bitwise_or.reduce(flat.reshape(-1, 4) << shifts, axis=1).tobytes()


def unpack_int2(data: np.ndarray, count: int) -> np.ndarray:
    """Inverse of `pack_int2`: the first `count` codes, int8."""
    shifts: np.ndarray = np.arange(0, 8, 2, dtype=np.uint8)
    pairs = (data.astype(np.uint8)[:, None] >> shifts).ravel()[:count] & 0x3
    return ((pairs.astype(np.int8) ^ 2) - 2).astype(np.int8)


PACKING: dict[str, Callable[[np.ndarray], bytes]] = {
    "INT8": lambda codes: np.ascontiguousarray(codes, np.int8).tobytes(),
    "INT4": pack_int4,
    "INT2": pack_int2,
}
UNPACKING = {"INT4": unpack_int4, "INT2": unpack_int2}


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a `.tflite` file, of which the first are looked at before the rest.

    Raises:
        ExportError: the file cannot be read, or is not a TFLite file.
    """
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            raise FileNotFoundError("no such file")
        with Path(path).open("rb") as file:
            start = file.read(8)
            _check_identifier(start, f"path={str(path)!r} with ")
            return start + file.read()
    except OSError as error:
        raise ExportError(
            f"The model file must be readable. Received: path={str(path)!r} ({error}). "
            "Check the path."
        ) from error


def _check_identifier(content: bytes, where: str = "") -> None:
    if content[4:8] != FILE_IDENTIFIER:
        raise ExportError(
            f"The file must be a TFLite model. Received: {where}bytes 4 to 8 = "
            f"{content[4:8]!r} instead of {FILE_IDENTIFIER!r}. Export it again."
        )


def read_model(content: bytes) -> Any:
    """The schema's `ModelT` of a file's bytes.

    Raises:
        ExportError: the bytes are not a TFLite file.
    """
    _check_identifier(content)
    try:
        return schema.ModelT.InitFromPackedBuf(content, 0)
    except Exception as error:  # offsets that lead out of the file, of any kind
        raise ExportError(
            f"The file must be a whole TFLite model. Received: {len(content)} bytes, "
            f"damaged ({str(error)[:100]}). Export it again."
        ) from error


def with_outputs(content: bytes, tensors: Sequence[int]) -> bytes:
    """A copy of a file whose outputs are the tensors given, in that order."""
    model = read_model(content)
    model.subgraphs[0].outputs = list(tensors)
    model.signatureDefs = None
    for number, buffer in enumerate(model.buffers):
        model.buffers[number] = AlignedBuffer()
        if buffer.data is not None:
            model.buffers[number].data = bytes(buffer.data)
    return _pack(model)


def stored_codes(model: Any, tensor: int) -> np.ndarray:
    """Integer codes of a constant INT8, INT4 or INT2 tensor of a model read back."""
    entry = model.subgraphs[0].tensors[tensor]
    data = np.asarray(model.buffers[entry.buffer].data, np.uint8)
    kind = tensor_type(model, tensor)
    if kind in UNPACKING:
        data = UNPACKING[kind](data, int(np.prod(entry.shape)))
    return data.view(np.int8).reshape(entry.shape)


def stored_bytes(model: Any, tensor: int) -> int:
    """Bytes that a constant tensor takes in the file."""
    return len(model.buffers[model.subgraphs[0].tensors[tensor].buffer].data)


def tensor_type(model: Any, tensor: int) -> str:
    """Name of a tensor's type, e.g. `"INT4"`."""
    value = model.subgraphs[0].tensors[tensor].type
    names = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    return names[value]


def read_metadata(path: str | Path) -> dict:
    """The metadata given to `export_tflite`, e.g. input scaling and class names.

    Args:
        path: a `.tflite` file.

    Returns:
        The dict; empty where the file has none.

    Raises:
        ExportError: the file cannot be read, or is not a TFLite file.
    """
    model = read_model(read_file(path))
    names = (METADATA_NAME, METADATA_NAME.encode())
    entries = [entry for entry in model.metadata or [] if entry.name in names]
    try:
        texts = [bytes(model.buffers[entry.buffer].data) for entry in entries]
        metadata = parse_json(texts[0].decode("utf-8")) if texts else {}
    except (IndexError, TypeError, ValueError) as error:
        raise ExportError(
            f"The metadata must be JSON. Received: path={str(path)!r} "
            f"({str(error)[:100]}). Export it again."
        ) from error
    if not isinstance(metadata, dict):
        raise ExportError(
            f"The metadata must be a JSON object. Received: path={str(path)!r} with "
            f"{metadata!r:.80}. Export it again."
        )
    return metadata


def _pack(model: Any) -> bytes:
    builder = SharingBuilder()
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def _aligned_vector(builder: flatbuffers.Builder, data: bytes) -> int:
    builder.StartVector(1, len(data), 16)
    builder.head = builder.head - len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return builder.EndVector()


def _pack_quantization(quantization: Quantization) -> Any:
    packed = SharedQuantization()
    packed.scale = list(quantization.scale)
    packed.zeroPoint = [quantization.zero_point] * len(quantization.scale)
    packed.quantizedDimension = quantization.axis
    return packed


def _operator_code(code: str, version: int) -> Any:
    packed = schema.OperatorCodeT()
    packed.builtinCode = getattr(schema.BuiltinOperator, code)
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
