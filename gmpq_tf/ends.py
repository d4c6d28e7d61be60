"""The first and last layers of a model, which are pinned at 8 bits by default."""

from __future__ import annotations

from typing import Any

from gmpq_tf.graph import Call, Graph, is_searchable, read_graph
from gmpq_tf.layer_kinds import Role

# Reductions: their result depends on many values, none of which is an output itself.
_GATHERING = frozenset(["Mean", "Max", "Sum"])


def end_names(model: Any) -> list[str]:
    """The first and the last searchable layer, and all whose results are outputs.

    A model with several outputs, or with an output made of several layers (such as a
    detector's heads), has several last layers. On the way to the output a result may be
    reshaped, concatenated, upsampled, normalized, scaled and activated; but not pooled,
    nor added to another.

    Args:
        model: a built functional Keras model.

    Returns:
        Names in graph order, each once.
    """
    graph = read_graph(model)
    names = list(dict.fromkeys(c.name for c in graph.calls if is_searchable(c.layer)))
    ends = {*names[:1], *names[-1:], *_last_names(graph)}
    return [name for name in names if name in ends]


def _last_names(graph: Graph) -> set[str]:
    producers, found = graph.producers(), set()
    pending, seen = list(graph.outputs), set()
    while pending:
        index = pending.pop()
        call = producers.get(index)
        if index in seen or call is None:
            continue
        seen.add(index)
        if is_searchable(call.layer):
            found.add(call.name)
        elif _passes(call):
            pending += call.inputs
    return found


def _passes(call: Call) -> bool:
    """Whether each value of a call's result depends on one tensor, at one position."""
    if "Pooling" in call.kind or call.kind in _GATHERING:
        return False
    return len(call.inputs) == 1 or call.row.whole or call.role is Role.HOST
