"""Cuts a model behind the layers that change images at random.

A student and its teacher must see the same image. So the layers before the first layer
with weights are run once, and their result is given to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from gmpq_tf.graph import (
    Call,
    Graph,
    KernelPart,
    functional_of,
    is_searchable,
    is_stock,
    read_graph,
)

# Layers of Keras that move or mix images at random.
MOVING_PREFIX, MOVING_KINDS = "Random", ("RandAugment", "AugMix", "CutMix", "MixUp")


def leading_layers(graph: Graph) -> list[str]:
    """Names of the layers before the first layer with weights, if one may be random.

    They end before the first dropout. A user's own layer counts as random.

    Args:
        graph: graph of a model without nested models.

    Returns:
        Names in graph order; [] if none of the layers may be random.
    """
    known, leading = set(graph.inputs), []
    for call in graph.calls:
        if known.issuperset(call.inputs) and _may_lead(call):
            known.update(call.outputs)
            leading.append(call)
    return [c.name for c in leading] if any(map(_is_random, leading)) else []


def misplaced_layers(graph: Graph) -> list[str]:
    """Names of layers behind the first weights that change images at random.

    Dropout and noise do not count: there they may act on the student alone.

    Args:
        graph: graph of a model without nested models.
    """
    leading = set(leading_layers(graph))
    return [
        call.name
        for call in graph.calls
        if call.name not in leading
        and is_stock(call.layer)
        and (call.kind.startswith(MOVING_PREFIX) or call.kind in MOVING_KINDS)
    ]


def split_front(
    model: keras.Model, names: Sequence[str], outputs: Any
) -> tuple[keras.Model | None, keras.Model]:
    """Splits a model behind its leading layers.

    Args:
        model: functional, without nested models.
        names: leading layers, as `leading_layers` returns them.
        outputs: symbolic tensors of the model that the second part returns.

    Returns:
        `front` (the model's inputs -> a list of tensors) and `rest` (these tensors ->
        outputs), which share the model's layers. Without names `front` is None, and
        `rest` takes the model's inputs.
    """
    inputs = functional_of(model)._inputs_struct  # a Sequential has none itself
    if not names:
        return None, keras.Model(inputs, outputs)
    graph = read_graph(model)
    leading = [call for call in graph.calls if call.name in names]
    made = {*graph.inputs, *(i for call in leading for i in call.outputs)}
    behind = [call for call in graph.calls if call.name not in names]
    border = sorted({i for call in behind for i in call.inputs if i in made})
    tensors = [keras_tensor(model, graph, index) for index in border]
    front = keras.Model(inputs, tensors, name=f"{model.name}_front")
    return front, keras.Model(tensors, outputs)


def keras_tensor(model: keras.Model, graph: Graph, index: int) -> Any:
    """The symbolic Keras tensor that has a number in `read_graph(model)`.

    Args:
        model: functional, without nested models.
        graph: graph of the model.
        index: number of the tensor; not of one inside a separable convolution.
    """
    if index in graph.inputs:
        return model.inputs[graph.inputs.index(index)]
    call = graph.producers()[index]
    calls = [c for c in graph.calls if c.layer is call.layer]
    layer = call.layer.source if isinstance(call.layer, KernelPart) else call.layer
    depths = functional_of(model)._nodes_by_depth
    own = {id(node) for nodes in depths.values() for node in nodes}
    # A layer may have been called in other models before.
    nodes = [node for node in layer._inbound_nodes if id(node) in own]
    node = nodes[calls.index(call)]
    return node.outputs[call.outputs.index(index)]


def _may_lead(call: Call) -> bool:
    """Whether a call may run before the split, so that both see its result."""
    if is_searchable(call.layer) or call.kind.endswith("Dropout"):
        return False
    return call.kind == "Normalization" or not getattr(call.layer, "weights", [])


def _is_random(call: Call) -> bool:
    """Whether a call without weights may draw random numbers in training."""
    if is_searchable(call.layer) or getattr(call.layer, "weights", []):
        return False
    # The state of a random generator is a variable, but not a weight.
    return not is_stock(call.layer) or bool(getattr(call.layer, "variables", []))
