"""Turn the graph of a quantized Keras model into TFLite operators.

`LOWERINGS` says which function writes which kind of layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gmpq_tf.graph import Call, Graph
from gmpq_tf.transform.placement import is_fusable_relu

from .convolutions import lower_layer
from .elementwise import (
    FINAL,
    lower_add,
    lower_affine,
    lower_final,
    lower_quantizer,
    lower_relu,
)
from .errors import ExportError
from .grids import Grid
from .integer_graph import ALIASES, Check, IntegerGraph, Kernel
from .pools import lower_average, lower_max_pool
from .shapes import (
    lower_alias,
    lower_concatenate,
    lower_cropping,
    lower_padding,
    lower_permute,
    lower_reshape,
    lower_upsampling,
)

LOWERINGS: dict[str, Callable[[IntegerGraph, Call], None]] = {
    "Conv2D": lower_layer,
    "DepthwiseConv2D": lower_layer,
    "Dense": lower_layer,
    "InputQuantizer": lower_quantizer,
    "BatchNormalization": lower_affine,
    "Rescaling": lower_affine,
    "Add": lower_add,
    "Concatenate": lower_concatenate,
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
    **dict.fromkeys(ALIASES, lower_alias),
}


@dataclass(frozen=True)
class Lowered:
    """A whole model: the file's content, and what to verify in it."""

    content: bytes
    graph: Graph
    kernels: list[Kernel]
    checks: list[Check]
    input_grids: list[Grid]
    output_steps: list[float]


def lower(
    student: Any,
    storage: str = "fast",
    input_type: str = "float32",
    output_type: str = "float32",
    metadata: dict | None = None,
    scale_codes: bool = False,
) -> Lowered:
    """Write a quantized model as TFLite operators.

    Args:
        student: calibrated model from `gmpq_tf.quantize_model`.
        storage: "fast": kernels in INT8; "packed": those of 4 bits or fewer in INT4;
            "smallest": those of 2 bits in INT2.
        input_type: "float32", "int8" or "uint8".
        output_type: likewise.
        metadata: stored in the file as JSON.
        scale_codes: multiply kernel codes by a power of two.

    Raises:
        ExportError: a layer that has no integer counterpart.
    """
    net = IntegerGraph(student, storage, scale_codes)
    inputs = net.add_inputs(input_type)
    for call in net.graph.calls:
        add_call(net, call, output_type)
    outputs = net.add_outputs(output_type)
    content = net.file.finish(inputs, outputs, metadata or {})
    return Lowered(
        content,
        net.graph,
        net.kernels,
        net.checks,
        net.input_grids,
        net.output_steps,
    )


def add_call(net: IntegerGraph, call: Call, output_type: str) -> None:
    """Add what one layer computes, with what is fused into it."""
    if id(call) in net.done:
        return
    if {call.kind, call.activation} & FINAL:
        lower_final(net, call, output_type)
    elif is_fusable_relu(call):
        lower_relu(net, call)
    elif call.kind in LOWERINGS:
        LOWERINGS[call.kind](net, call)
    else:
        raise ExportError(
            "Every layer must have an integer TFLite counterpart. "
            f"Received: layer={call.name!r} of kind {call.kind}"
            f"{_activation_note(call)}. Kinds that export: "
            f"{', '.join(sorted({*LOWERINGS, 'ReLU', 'Softmax'}))}. Replace the "
            "layer before quantize_model."
        )


def _activation_note(call: Call) -> str:
    return f" (activation {call.activation!r})" if call.kind == "Activation" else ""
