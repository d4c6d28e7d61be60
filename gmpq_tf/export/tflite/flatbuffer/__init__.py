"""TFLite files: writing them, reading them, and codes of fewer than eight bits."""

from gmpq_tf.export.integers.grids import Quantization
from gmpq_tf.export.tflite.flatbuffer.packing import (
    PACKING,
    UNPACKING,
    pack_int2,
    pack_int4,
    unpack_int2,
    unpack_int4,
)
from gmpq_tf.export.tflite.flatbuffer.reader import (
    METADATA_NAME,
    operator_name,
    read_file,
    read_metadata,
    read_model,
    stored_biases,
    stored_bytes,
    stored_codes,
    tensor_type,
    with_outputs,
)
from gmpq_tf.export.tflite.flatbuffer.sharing import FILE_IDENTIFIER
from gmpq_tf.export.tflite.flatbuffer.writer import NUMPY_TYPES, VERSIONS, FileBuilder

__all__ = [
    "FILE_IDENTIFIER",
    "METADATA_NAME",
    "NUMPY_TYPES",
    "PACKING",
    "UNPACKING",
    "VERSIONS",
    "FileBuilder",
    "Quantization",
    "operator_name",
    "pack_int2",
    "pack_int4",
    "read_file",
    "read_metadata",
    "read_model",
    "stored_biases",
    "stored_bytes",
    "stored_codes",
    "tensor_type",
    "unpack_int2",
    "unpack_int4",
    "with_outputs",
]
