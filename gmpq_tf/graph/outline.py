"""What two models have in common that take the same time."""

from __future__ import annotations

import hashlib
from typing import Any

from gmpq_tf.graph.calls import Call, Graph
from gmpq_tf.graph.reading import read_graph
from gmpq_tf.layer_kinds import Role


def outline(model: Any) -> str:
    """A digest of the kinds and shapes of all layers, in graph order.

    Names, weights, and layers that do nothing in inference are left out.

    Args:
        model: a built functional Keras model.
    """
    graph = read_graph(model)
    calls = (call for call in graph.calls if call.role is not Role.IDENTITY)
    text = "\n".join(_line(graph, call) for call in calls)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _line(graph: Graph, call: Call) -> str:
    read, made = (
        [graph.shapes[i] for i in side] for side in (call.inputs, call.outputs)
    )
    kernel = tuple(getattr(getattr(call.layer, "kernel", None), "shape", ()))
    return f"{call.kind} {call.activation} {kernel} {read} {made}"
