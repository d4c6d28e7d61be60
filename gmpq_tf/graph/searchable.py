"""The layers of a float model whose bits are searched."""

from __future__ import annotations

from typing import Any

from gmpq_tf.graph.calls import GraphError
from gmpq_tf.graph.reading import read_graph
from gmpq_tf.graph.recognition import is_searchable
from gmpq_tf.layer_kinds import Role


def searchable_layers(model: Any) -> list:
    """The layers whose bits are searched, in graph order, once each."""
    return list(_searchable_calls(model).values())


def searchable_names(model: Any) -> list[str]:
    """Names of the searchable layers, in graph order: the keys of a policy."""
    return list(_searchable_calls(model))


def _searchable_calls(model: Any) -> dict[str, Any]:
    calls = read_graph(model).calls
    return {call.name: call.layer for call in calls if is_searchable(call.layer)}


def check_float(model: Any) -> None:
    """Refuses a model that has been quantized, or that adds LoRA's kernels to its own.

    Args:
        model: a built functional model.

    Raises:
        GraphError: it is not functional, or has quantizers or LoRA weights.
    """
    for call in read_graph(model).calls:
        ours = call.role is Role.QUANTIZER or hasattr(call.layer, "kernel_quantizer")
        if ours or getattr(call.layer, "quantization_mode", None):  # Keras's own
            raise GraphError(
                "The model must be the float one. "
                f"Received: model={model.name!r}, whose layer {call.name!r} is "
                "quantized already. Pass the model that it was made of."
            )
        if getattr(call.layer, "lora_enabled", False):
            raise GraphError(
                "Each layer must have one kernel. "
                f"Received: model={model.name!r}, whose layer {call.name!r} adds "
                "LoRA's. save_weights() merges them: load its file into the model "
                "without LoRA."
            )
