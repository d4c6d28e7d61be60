"""Tells from the float model which layers the export to TFLite will refuse."""

from __future__ import annotations

import math
import warnings

import numpy as np

from gmpq_tf.graph import (
    Call,
    Graph,
    KernelPart,
    Ref,
    is_identity,
    is_over_last_axis,
)
from gmpq_tf.layer_kinds import LOWERED, Role
from gmpq_tf.transform.gates import is_gate, is_lookup
from gmpq_tf.transform.placement import is_final
from gmpq_tf.transform.units import is_fusable_relu

QUANTIZERS = ("input_quantizer", "kernel_quantizer")
# Roles of calls that may read several tensors in integers.
OF_SEVERAL = (Role.SUM, Role.PRODUCT, Role.JOIN, Role.MEAN, Role.NORM)
# Operations of a tensor and a constant.
ARITHMETIC = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide")


def is_lowered(call: Call) -> bool:
    """Whether a call has an integer counterpart, wherever it stands in a model.

    Subtraction and division of two tensors have none among the kernels used here, nor
    have layers that read a mask as a second tensor. (A BatchNormalization that does has
    one, since only training uses the mask.)
    """
    if len(call.inputs) != 1 and call.role not in OF_SEVERAL:
        return False
    if is_gate(call) or is_lookup(call) or is_fusable_relu(call) or is_identity(call):
        return True
    return call.role in LOWERED


def refusals(graph: Graph) -> dict[str, str]:
    """The layers that the export will refuse: name -> why.

    Args:
        graph: graph of a float model or of a student, after `split_activations` and
            `split_gates`.
    """
    consumers = graph.consumers()
    found: dict[str, str] = {}
    for call in graph.calls:
        if is_final(graph, call, consumers[call.outputs[0]]):
            continue
        reason = _refusal(graph, call)
        if reason is not None:
            found.setdefault(call.name, reason)
    return found


def _refusal(graph: Graph, call: Call) -> str | None:
    if not is_lowered(call):
        plain = call.role is Role.CURVE and hasattr(call.layer, "activation")
        note = f" (activation {call.activation!r})" if plain else ""
        note = ", which reads no quantities" if call.row.of_indices else note
        rank = len(graph.shapes[call.outputs[0]])
        if len(call.inputs) > 1 and call.role is not Role.FLOAT:
            note = f" of {len(call.inputs)} tensors"
        elif call.row.function and not is_over_last_axis(call.layer, rank):
            note = f" along axis {call.layer.axis}, which must be the last"
        return f"of kind {call.kind}{note}"
    layer = call.layer
    for quantizer in (layer, *map(vars(layer).get, QUANTIZERS)):
        if not getattr(quantizer, "on_grid", True):
            return f"quantized by {quantizer.method!r}, which rounds to no nearest code"
    config = layer.config if isinstance(layer, KernelPart) else {}
    order = getattr(layer, "data_format", config.get("data_format"))
    # With no axes in between, channels first and channels last are the same.
    moves = call.kind != "Flatten" or len(graph.shapes[call.inputs[0]]) > 2
    if order == "channels_first" and moves and not is_identity(call):
        return "with channels first"
    refused = call.row.refuses(layer, len(call.inputs))
    if refused is not None:
        return refused
    if (reason := _of_uneven_constant(graph, call)) is not None:
        return reason
    if call.role is Role.MEAN and len({graph.shapes[i] for i in call.inputs}) > 1:
        return "of tensors of several shapes, bring them to one before it"
    if any(None in graph.shapes[i][1:] for i in call.outputs):
        return "with an open size, give keras.Input a fixed shape"
    return None


def _of_uneven_constant(graph: Graph, call: Call) -> str | None:
    """Why a constant cannot be folded into a factor and an offset per channel."""
    constants: list = []
    if call.kind in ARITHMETIC and len(call.inputs) == 1 and len(call.args) == 2:
        constants = [arg for arg in call.args if not isinstance(arg, Ref)]
        if "Divide" in call.kind and isinstance(call.args[1], Ref):
            return f"of kind {call.kind}, a constant divided by a tensor"
    elif call.kind == "Normalization":
        constants = [call.layer.mean, call.layer.variance]
    elif call.kind == "Rescaling":
        constants = [call.layer.scale, call.layer.offset]
    channels = graph.shapes[call.inputs[0]][-1]
    for shape in map(np.shape, constants):
        if math.prod(shape[:-1]) > 1 or (*shape[-1:], 1)[0] not in (1, channels):
            return f"of kind {call.kind}, constants of shape {shape}: use one a channel"
    return None


def warn_of_refusals(graph: Graph) -> None:
    """Names in one warning all layers that the export will refuse."""
    between = {call.name for call in graph.calls if call.role is Role.HOST}
    found = [
        f"{name!r} {reason}"
        for name, reason in refusals(graph).items()
        if name not in between
    ]
    if found:
        warnings.warn(
            "The export to TFLite will refuse these layers: "
            f"{', '.join(found)}. Replace them before you search or fine-tune, unless "
            "you do not mean to export, or with float_layers='allow', which keeps in "
            "float what has no integer counterpart.",
            stacklevel=3,
        )
