"""Reads TFLite files: their model, constants and metadata."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer.packing import UNPACKING
from gmpq_tf.export.tflite.flatbuffer.sharing import (
    FILE_IDENTIFIER,
    AlignedBuffer,
    pack_model,
)
from gmpq_tf.files import parse_json

METADATA_NAME = "gmpq_tf"


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a `.tflite` file; its identifier is checked before the rest is read.

    Raises:
        ExportError: the file cannot be read, or is not a TFLite file.
    """
    try:
        if not Path(path).is_file():  # reading a pipe would block
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
    except Exception as error:  # damaged offsets raise errors of many classes
        raise ExportError(
            f"The file must be a whole TFLite model. Received: {len(content)} bytes, "
            f"damaged ({str(error)[:100]}). Export it again."
        ) from error


def with_outputs(content: bytes, tensors: Sequence[int]) -> bytes:
    """A copy of a file whose outputs are the given tensors, in that order."""
    model = read_model(content)
    model.subgraphs[0].outputs = list(tensors)
    model.signatureDefs = None
    for number, buffer in enumerate(model.buffers):
        model.buffers[number] = AlignedBuffer()
        if buffer.data is not None:
            model.buffers[number].data = bytes(buffer.data)
    return pack_model(model)


def stored_codes(model: Any, tensor: int) -> np.ndarray:
    """Codes of a constant INT8, INT4 or INT2 tensor, unpacked: int8 of its shape."""
    entry = model.subgraphs[0].tensors[tensor]
    data = np.asarray(model.buffers[entry.buffer].data, np.uint8)
    kind = tensor_type(model, tensor)
    if kind in UNPACKING:
        data = UNPACKING[kind](data, int(np.prod(entry.shape)))
    return data.view(np.int8).reshape(entry.shape)


def stored_biases(model: Any, tensor: int) -> np.ndarray:
    """Numbers of a constant INT32 tensor, of its shape."""
    entry = model.subgraphs[0].tensors[tensor]
    data = np.asarray(model.buffers[entry.buffer].data, np.uint8)
    return data.view("<i4").reshape(entry.shape)


def stored_bytes(model: Any, tensor: int) -> int:
    """Bytes that a constant tensor takes in the file."""
    return len(model.buffers[model.subgraphs[0].tensors[tensor].buffer].data)


def tensor_type(model: Any, tensor: int) -> str:
    """Name of a tensor's type, e.g. `"INT4"`."""
    return _names(schema.TensorType)[model.subgraphs[0].tensors[tensor].type]


def operator_name(model: Any, operator: Any) -> str:
    """Name of an operator of a model, e.g. `"CONV_2D"`."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _names(schema.BuiltinOperator)[number]


@cache
def _names(enumeration: Any) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}


def read_metadata(path: str | Path) -> dict:
    """The metadata given to `export_tflite`, e.g. input scaling and class names.

    Args:
        path: a `.tflite` file.

    Returns:
        The dict; empty if the file has none.

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
