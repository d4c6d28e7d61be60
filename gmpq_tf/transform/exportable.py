"""Tells from the float model which layers the export to TFLite will refuse."""

from __future__ import annotations

import warnings

from gmpq_tf.graph import Call, Graph, KernelPart, is_identity
from gmpq_tf.layer_kinds import LOWERED, Role
from gmpq_tf.transform.gates import is_gate, is_lookup
from gmpq_tf.transform.placement import is_final
from gmpq_tf.transform.units import is_fusable_relu

QUANTIZERS = ("input_quantizer", "kernel_quantizer")


def is_lowered(call: Call) -> bool:
    """Whether a call has an integer counterpart, wherever it stands in a model.

    Subtraction and division of two tensors have none among the kernels used here.
    """
    if is_gate(call) or is_lookup(call) or is_fusable_relu(call) or is_identity(call):
        return True
    if call.role is Role.SCALING and len(call.inputs) != 1:
        return False
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
        return f"of kind {call.kind}{note}"
    layer = call.layer
    for quantizer in (layer, *map(vars(layer).get, QUANTIZERS)):
        if not getattr(quantizer, "on_grid", True):
            return f"quantized by {quantizer.method!r}, which rounds to no nearest code"
    config = layer.config if isinstance(layer, KernelPart) else {}
    order = getattr(layer, "data_format", config.get("data_format"))
    # Without axes between them, the channels are first and last.
    moves = call.kind != "Flatten" or len(graph.shapes[call.inputs[0]]) > 2
    if order == "channels_first" and moves and not is_identity(call):
        return "with channels first"
    refused = call.row.refuses(layer, len(call.inputs))
    if refused is not None:
        return refused
    if call.role is Role.MEAN and len({graph.shapes[i] for i in call.inputs}) > 1:
        return "of tensors of several shapes, bring them to one before it"
    if any(None in graph.shapes[i][1:] for i in call.outputs):
        return "with an open size, give keras.Input a fixed shape"
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
            "you do not mean to export.",
            stacklevel=3,
        )
