"""A `.tflite` file as C source: an array, and a header on how to run it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import operator_name, read_model, tensor_type
from gmpq_tf.export.tflite.micro.arena import Arena
from gmpq_tf.export.tflite.micro.int4 import Int4
from gmpq_tf.version import __version__

PER_LINE = 12
MARK = "written by gmpq_tf"  # marks files that may be overwritten
# Operators of files -> methods of MicroMutableOpResolver, of the header
# tensorflow/lite/micro/micro_mutable_op_resolver.h in tensorflow/tflite-micro.
RESOLVER_METHODS = {
    "ADD": "AddAdd",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "CAST": "AddCast",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "FULLY_CONNECTED": "AddFullyConnected",
    "GATHER": "AddGather",
    "LOGISTIC": "AddLogistic",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MIRROR_PAD": "AddMirrorPad",
    "MUL": "AddMul",
    "PAD": "AddPad",
    "QUANTIZE": "AddQuantize",
    "RELU": "AddRelu",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor",
    "SLICE": "AddSlice",
    "SOFTMAX": "AddSoftmax",
    "SPACE_TO_DEPTH": "AddSpaceToDepth",
    "TRANSPOSE": "AddTranspose",
    "TRANSPOSE_CONV": "AddTransposeConv",
}


@dataclass(frozen=True)
class TensorFacts:
    """An input or output of a file.

    Args:
        name: name of the tensor.
        type: "INT8", "UINT8" or "FLOAT32".
        shape: shape with the batch.
        scale: `value = scale * (code - zero_point)`; None: the tensor holds floats.
        zero_point: see `scale`; None: the tensor holds floats.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    scale: float | None
    zero_point: int | None

    def __str__(self) -> str:
        what = f"{self.name}: {self.type.lower()} {list(self.shape)}"
        if self.scale is None:
            return what
        return f"{what}, value = {self.scale!r} * (code - {self.zero_point})"


@dataclass(frozen=True)
class Source:
    """The facts that a header states.

    Args:
        file: name of the `.tflite` file.
        content: its bytes.
        activation_bytes: bytes that the planner needs for computed tensors.
        arena: the arena as measured; None: TFLite Micro is not installed.
        int4: INT4 kernels, one row per layer.
    """

    file: str
    content: bytes
    activation_bytes: int
    arena: Arena | None
    int4: tuple[Int4, ...]

    @property
    def stem(self) -> str:
        """The file's name as part of a C identifier."""
        text = re.sub(r"\W", "_", _file_stem(self), flags=re.ASCII)
        return f"model_{text}" if text[:1].isdigit() else text


def ends(content: bytes) -> tuple[tuple[TensorFacts, ...], tuple[TensorFacts, ...]]:
    """Facts on the inputs and on the outputs of a file's bytes."""
    model = read_model(content)
    graph = model.subgraphs[0]
    return (
        tuple(_facts(model, int(n)) for n in graph.inputs),
        tuple(_facts(model, int(n)) for n in graph.outputs),
    )


def resolver_methods(content: bytes) -> tuple[str, ...]:
    """Methods of `MicroMutableOpResolver` that add the operators of a file, each once.

    Raises:
        ExportError: TFLite Micro lacks an operator.
    """
    model = read_model(content)
    codes = {operator_name(model, op): op for op in model.subgraphs[0].operators}
    if unknown := sorted(set(codes) - set(RESOLVER_METHODS)):
        raise ExportError(
            "TFLite Micro must have every operator of the file. "
            f"Received: {', '.join(unknown)}. Leave out runtime='micro', or the layers "
            "that need them."
        )
    return tuple(sorted(RESOLVER_METHODS[code] for code in codes))


def header(source: Source) -> str:
    """The header: what is needed to run the file, as a comment and as macros."""
    name, upper = f"g_{source.stem}", source.stem.upper()
    inputs, outputs = ends(source.content)
    macros = {"ACTIVATION_BYTES": str(source.activation_bytes)}
    if source.arena is not None:
        macros["ARENA_BYTES"] = str(source.arena.total)
    for kind, tensors in (("INPUT", inputs), ("OUTPUT", outputs)):
        for number, facts in enumerate(tensors):
            if facts.scale is not None:
                macros[f"{kind}_{number}_SCALE"] = f"{facts.scale!r}f"
                macros[f"{kind}_{number}_ZERO_POINT"] = f"({facts.zero_point})"
    lines = [
        "/*",
        *(f" * {line}".rstrip() for line in map(_harmless, _comment(source))),
        " */",
        f"#ifndef GMPQ_{upper}_H_",
        f"#define GMPQ_{upper}_H_",
        "",
        *(f"#define {upper}_{key} {value}" for key, value in macros.items()),
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        f"extern const unsigned char {name}[];",
        f"extern const unsigned int {name}_len;",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        f"#endif  // GMPQ_{upper}_H_",
    ]
    return "\n".join(lines) + "\n"


def array(source: Source) -> str:
    """The C++ source that defines the array with the file's bytes."""
    name = f"g_{source.stem}"
    rows = [
        "    " + ", ".join(f"0x{byte:02x}" for byte in source.content[at:][:PER_LINE])
        for at in range(0, len(source.content), PER_LINE)
    ]
    return (
        f"// {_harmless(source.file)}, {MARK} {__version__}.\n"
        f'#include "{_file_stem(source)}.h"\n\n'
        f"alignas(16) const unsigned char {name}[] = {{\n"
        + ",\n".join(rows)
        + f"\n}};\nconst unsigned int {name}_len = {len(source.content)};\n"
    )


def _comment(source: Source) -> list[str]:
    inputs, outputs = ends(source.content)
    methods = resolver_methods(source.content)
    return [
        f"{source.file} for TFLite Micro, {MARK} {__version__}.",
        "",
        f"bytes       {len(source.content)}",
        *_arena(source),
        *(f"input {n}     {facts}" for n, facts in enumerate(inputs)),
        *(f"output {n}    {facts}" for n, facts in enumerate(outputs)),
        "",
        f"static tflite::MicroMutableOpResolver<{len(methods)}> resolver;",
        *(f"resolver.{method}();" for method in methods),
        "",
        "Kernels are stored in INT8. What CMSIS-NN could compute from INT4, packed two "
        "codes a byte:",
        *(_int4(row) for row in source.int4),
    ]


def _arena(source: Source) -> list[str]:
    if source.arena is None:
        return [
            f"arena       not measured (no tflite-micro): {source.activation_bytes} "
            "bytes for activations,",
            "            on top of them what the interpreter keeps of operators",
        ]
    arena = source.arena
    return [
        f"arena       {arena.total} bytes, {arena.activations} of them activations:",
        f"            measured with tflite-micro {arena.measured_with} and its "
        "reference kernels on a",
        "            64-bit machine; CMSIS-NN asks for scratch buffers beside",
    ]


def _int4(row: Int4) -> str:
    if row.function is None:
        return f"  {row.layer}: no, {row.why}"
    return f"  {row.layer}: {row.function}, {row.packed_bytes} of {row.bytes} bytes"


def _harmless(text: str) -> str:
    """Text made safe for a C comment: it cannot end it, nor begin a new line."""
    return " ".join(text.replace("*/", "* /").replace("\\", "/").splitlines())


def _file_stem(source: Source) -> str:
    return source.file.rsplit(".", 1)[0]


def _facts(model: Any, number: int) -> TensorFacts:
    tensor = model.subgraphs[0].tensors[number]
    name = tensor.name.decode() if isinstance(tensor.name, bytes) else tensor.name
    kind = tensor_type(model, number)
    shape = tuple(map(int, tensor.shape))
    if kind == "FLOAT32":
        return TensorFacts(name, kind, shape, None, None)
    meaning = tensor.quantization
    scale = float(str(np.float32(meaning.scale[0])))  # the shortest decimal form
    return TensorFacts(name, kind, shape, scale, int(meaning.zeroPoint[0]))
