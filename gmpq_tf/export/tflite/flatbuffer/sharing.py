"""Packs a model into bytes, with equal parts written only once.

A flatbuffer refers to strings, vectors and tables by offsets, so several tables may
refer to the same one. The schema's object API writes each anew; the classes here
override its `Pack` and reuse the offset of an equal part. That matters in small files.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

FILE_IDENTIFIER = b"TFL3"


class AlignedBuffer(schema.BufferT):
    """A buffer aligned to 16 bytes, as kernels on some processors require."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        """Writes the buffer; returns its offset."""
        data = None if self.data is None else _aligned_vector(builder, self.data)
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class SharedTensor(schema.TensorT):
    """A tensor that shares its shape with other tensors."""

    def Pack(self, builder: SharingBuilder) -> int:  # noqa: N802
        """Writes the tensor; returns its offset."""
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
    """Quantization parameters that share equal tables and vectors.

    The zero points of each kernel and bias would be eight zero bytes per channel.
    """

    def Pack(self, builder: SharingBuilder) -> int:  # noqa: N802
        """Writes the parameters; returns their offset."""
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
    """Operator options that are shared by operators with equal ones."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def Pack(self, builder: SharingBuilder) -> int:  # noqa: N802
        """Writes the options; returns their offset."""
        key = (type(self.options).__name__, repr(sorted(vars(self.options).items())))
        if key not in builder.options:
            builder.options[key] = self.options.Pack(builder)
        return builder.options[key]


class SharingBuilder(flatbuffers.Builder):
    """A builder that remembers the offsets of what it has written."""

    def __init__(self) -> None:
        super().__init__(1 << 16)
        self.written: dict[tuple[str, bytes], int] = {}
        self.parameters: dict[tuple[int, int, int], int] = {}
        self.options: dict[tuple[str, str], int] = {}

    def vector(self, values: np.ndarray) -> int:
        """Offset of a vector with these values, [n]; written if it is new."""
        key = (values.dtype.str, values.tobytes())
        if key not in self.written:
            self.written[key] = self.CreateNumpyVector(values)
        return self.written[key]


def pack_model(model: Any) -> bytes:
    """The bytes of a `ModelT`, with equal parts written once."""
    builder = SharingBuilder()
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def _aligned_vector(builder: flatbuffers.Builder, data: bytes) -> int:
    # Flatbuffers are built from back to front: reserve the space, then copy the data in
    # one piece; `CreateByteVector` would not align it to 16 bytes.
    builder.StartVector(1, len(data), 16)
    builder.head = builder.head - len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return builder.EndVector()
