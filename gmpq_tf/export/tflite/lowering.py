"""Turns the graph of a quantized Keras model into TFLite operators.

`LOWERINGS` says which function writes which kind of layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Grid
from gmpq_tf.export.tflite.convolutions import lower_layer
from gmpq_tf.export.tflite.detection_metadata import detecting_outputs
from gmpq_tf.export.tflite.elementwise import (
    lower_add,
    lower_affine,
    lower_final,
    lower_gate,
    lower_multiply,
    lower_quantizer,
    lower_relu,
)
from gmpq_tf.export.tflite.file_ends import add_inputs, add_outputs, described
from gmpq_tf.export.tflite.float_parts import FloatPart, lower_float
from gmpq_tf.export.tflite.integer_graph import Check, IntegerGraph, Kernel
from gmpq_tf.export.tflite.lines import is_on_image, on_image
from gmpq_tf.export.tflite.lookup import lower_lookup
from gmpq_tf.export.tflite.metadata import (
    ENTRY_NAME,
    Facts,
    standard_metadata,
    takes_pixels,
    with_labels,
)
from gmpq_tf.export.tflite.pools import (
    lower_average,
    lower_bilinear,
    lower_max_pool,
    lower_mean,
)
from gmpq_tf.export.tflite.postprocess import (
    DetectorHead,
    PostProcess,
    add_postprocess,
)
from gmpq_tf.export.tflite.shapes import (
    lower_alias,
    lower_concatenate,
    lower_cropping,
    lower_padding,
    lower_permute,
    lower_reshape,
    lower_upsampling,
)
from gmpq_tf.graph import Call, Graph, is_identity
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layer_kinds import BILINEAR, FUNCTIONS, KINDS, Role
from gmpq_tf.transform.exportable import refusals
from gmpq_tf.transform.gates import is_gate, is_lookup
from gmpq_tf.transform.placement import is_final
from gmpq_tf.transform.units import is_fusable_relu

LOWERINGS: dict[str, Callable[[IntegerGraph, Call], None]] = {
    **dict.fromkeys(KERNEL_KINDS, lower_layer),
    "InputQuantizer": lower_quantizer,
    "BatchNormalization": lower_affine,
    "Rescaling": lower_affine,
    "Normalization": lower_affine,
    "Add": lower_add,
    "Multiply": lower_multiply,
    "Subtract": lower_affine,
    "Divide": lower_affine,
    "TrueDivide": lower_affine,
    "Concatenate": lower_concatenate,
    "Average": lower_mean,
    "MaxPooling2D": lower_max_pool,
    "GlobalMaxPooling2D": lower_max_pool,
    "AveragePooling2D": lower_average,
    "GlobalAveragePooling2D": lower_average,
    "Flatten": lower_reshape,
    "Reshape": lower_reshape,
    "Permute": lower_permute,
    "ZeroPadding2D": lower_padding,
    "Cropping2D": lower_cropping,
    "UpSampling2D": lower_upsampling,
    BILINEAR: lower_bilinear,
    "LeakyReLU": lower_lookup,
    "LeakyRelu": lower_lookup,
    "PReLU": lower_lookup,
}
# Layers on sequences are lowered as layers on images of one row: see `lines`.
LOWERINGS |= {
    kind.name: LOWERINGS[kind.images]
    for kind in KINDS.values()
    if kind.images in LOWERINGS
}
# Activations that can be exported too, as layers or as functions.
ACTIVATIONS = ("ReLU", "Softmax", *(f.name for f in FUNCTIONS.values() if f.exports))
# Kernels of Micro round twice. For small sums, as of 4 bits times 4 bits, values close
# to a half may end one step off.
ROUNDS_TWICE = 0.05


@dataclass(frozen=True)
class Lowered:
    """The file of a whole model, and what has to be verified in it.

    Args:
        content: the file's bytes.
        graph: graph of the student.
        kernels: where each layer's kernel is stored.
        checks: tensors to compare with Keras.
        input_grids: grids of the inputs, in order.
        output_steps: steps of the outputs, in order.
        runs_in: kernels that compute it, a key of `runtime.KERNELS`.
        spans: (layer, first operator, one past its last), in the file's order; the
            layer "" stands for operators of inputs and outputs.
        float_parts: layers that are computed in float.
    """

    content: bytes
    graph: Graph
    kernels: list[Kernel]
    checks: list[Check]
    input_grids: list[Grid]
    output_steps: list[float]
    runs_in: str = "xnnpack"
    spans: tuple[tuple[str, int, int], ...] = ()
    float_parts: tuple[FloatPart, ...] = ()


def lower(
    student: Any,
    storage: str = "fast",
    input_type: str = "float32",
    output_type: str = "float32",
    metadata: dict | None = None,
    scale_codes: bool = False,
    batch: int | None = None,
    runtime: str = "litert",
    known: Facts | None = None,
    float_layers: str = "refuse",
    head: DetectorHead | None = None,
    postprocess: PostProcess | None = None,
) -> Lowered:
    """Writes a quantized model as TFLite operators.

    Args:
        student: calibrated model from `gmpq_tf.quantize_model`.
        storage: "fast": kernels in INT8; "packed": those of 4 bits or fewer in INT4;
            "smallest": those of 2 bits in INT2.
        input_type: "float32", "int8" or "uint8".
        output_type: "float32", "int8" or "uint8".
        metadata: stored in the file as JSON.
        scale_codes: whether kernel codes are multiplied by a power of two.
        batch: batch size of the file; None: any, or the fixed one of the model.
        runtime: "litert", or "micro" for TFLite Micro: batch size 1 by default, and
            `scale_codes`.
        known: class names and scaling, for the standard metadata.
        float_layers: "refuse" layers that have no integer counterpart, or "allow" them
            to be computed in float.
        head: what the outputs of a detector mean; None: the model is not a detector.
        postprocess: options for returning detections; None: outputs are returned.

    Raises:
        ExportError: layers have no integer counterpart; all are named.
    """
    micro = runtime == "micro"
    net = IntegerGraph(student, storage, scale_codes or micro, batch, runtime)
    in_float = check_kinds(net.graph, float_layers == "allow")
    inputs = add_inputs(net, input_type)
    ends, parts = [0, len(net.file.operators)], []
    for call in net.graph.calls:
        if call.name in in_float:
            parts.append(lower_float(net, call))
        else:
            add_call(net, call, output_type)
        ends.append(len(net.file.operators))
    outputs = add_outputs(net, output_type)
    ends_described = described(net, inputs), described(net, outputs)
    if head is not None and postprocess is not None:
        outputs = add_postprocess(net.file, list(outputs.values()), head, postprocess)
    known = known or Facts()
    detecting = detecting_outputs(head, postprocess is not None, output_type, known)
    if head is not None and detecting is None:
        known = replace(known, class_names=())
    standard = standard_metadata(student.name, *ends_described, known, detecting)
    content = net.file.finish(inputs, outputs, metadata or {}, {ENTRY_NAME: standard})
    return Lowered(
        with_labels(content, ends_described[1], known, detecting),
        net.graph,
        net.kernels,
        [replace(c, slack=c.slack + ROUNDS_TWICE) for c in net.checks]
        if micro
        else net.checks,
        net.input_grids,
        net.output_steps,
        "reference" if micro else "xnnpack",
        spans_of(net, [*ends, len(net.file.operators)]),
        tuple(parts),
    )


def reads_pixels(student: Any, known: Facts) -> bool:
    """Whether the codes of a model's only input are the pixels 0..255 of images.

    Args:
        student: calibrated model.
        known: how pixels are scaled.
    """
    net = IntegerGraph(student, "fast", False, None, "litert")
    taken = described(net, add_inputs(net, "uint8"))
    return takes_pixels(taken[0], taken, known)


def spans_of(net: IntegerGraph, ends: list[int]) -> tuple[tuple[str, int, int], ...]:
    """The operators that each layer wrote, from the counts of operators after each."""
    names = ["", *(call.name for call in net.graph.calls), ""]
    spans = zip(names, ends[:-1], ends[1:], strict=True)
    return tuple(span for span in spans if span[1] < span[2])


def add_call(net: IntegerGraph, call: Call, output_type: str) -> None:
    """Writes the operators of one call, with what is fused into it."""
    if id(call) in net.done:
        return
    if is_final(net.graph, call, net.consumers[call.outputs[0]]):
        lower_final(net, call, output_type)
    elif is_on_image(net, call):
        on_image(net, call, lower_call)
    else:
        lower_call(net, call)


def lower_call(net: IntegerGraph, call: Call) -> None:
    """Writes the operators of a call that does not end the model.

    Raises:
        ExportError: its kind has no function in `LOWERINGS`.
    """
    if is_identity(call):
        lower_alias(net, call)
    elif is_gate(call):
        lower_gate(net, call)
    elif is_lookup(call):
        lower_lookup(net, call)
    elif is_fusable_relu(call):
        lower_relu(net, call)
    elif call.row.name in LOWERINGS:
        LOWERINGS[call.row.name](net, call)
    else:
        raise ExportError(
            "A kind of layer whose row in KINDS has a role of integers must have the "
            f"function that writes it. Received: layer={call.name!r} of kind "
            f"{call.kind}. Add LOWERINGS[{call.row.name!r}] = function, of "
            "gmpq_tf.export.tflite.lowering."
        )


def check_kinds(graph: Graph, allow_float: bool = False) -> set[str]:
    """Names every layer that has no integer counterpart, in one error.

    Args:
        graph: graph of the student.
        allow_float: refuse only layers that cannot be computed in float either.

    Returns:
        Names of the layers to compute in float.

    Raises:
        ExportError: a layer is refused.
    """
    found = refusals(graph)
    stays = floatable(graph, found) if allow_float else set()
    refused = [f"{name!r} {found[name]}" for name in found if name not in stays]
    if refused:
        can = floatable(graph, found)
        remedy = (
            ", or keep them in float: float_layers='allow' (--float_layers=allow)"
            if can.issuperset(found)
            else ""
        )
        raise ExportError(
            "Every layer must have an integer TFLite counterpart. "
            f"Received: layer={', '.join(refused)}. Kinds that export: "
            f"{', '.join(sorted({*LOWERINGS, *ACTIVATIONS}))}. Replace the layers "
            f"before quantize_model{remedy}; a softmax can only end a model."
        )
    return stays


def floatable(graph: Graph, found: Collection[str]) -> set[str]:
    """The layers among some that a file can compute in float.

    These have no quantized kernel, known sizes, and float32 inputs and outputs that are
    quantities, which may be rounded.

    Args:
        graph: graph of the student.
        found: names of layers.
    """
    return {
        call.name
        for call in graph.calls
        if call.name in found
        and call.role not in (Role.KERNEL, Role.QUANTIZER)
        and not call.row.of_indices
        and not any(None in graph.shapes[i][1:] for i in (*call.inputs, *call.outputs))
        and all(graph.dtypes[i] == "float32" for i in (*call.inputs, *call.outputs))
    }
