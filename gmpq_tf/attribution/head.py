"""Split a classifier at its last feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

from gmpq_tf.graph import Call, Graph, GraphError, KernelPart, read_graph
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.front import keras_tensor, split_front
from gmpq_tf.transform.rewrite import flattened, logits_of


def split_head(
    model: keras.Model,
    feature_layer: str | None = None,
    front: Sequence[str] = (),
) -> tuple[keras.Model, keras.Model]:
    """Split a classifier into `backbone` (image -> A) and `head` (A -> scores).

    Args:
        model: functional classifier, one input and one output
            [B, classes] (or [B, 1] for two classes), logits, softmax or sigmoid.
        feature_layer: layer whose output is A; None: the last [B, H, W, C] tensor with
            more than one pixel that every path to the output passes through, or, where
            there is none, the last such [B, T, C] tensor with more than one step.
        front: names of leading layers that the caller runs first (see `split_front`);
            the backbone takes their results.

    Returns:
        (backbone, head); the head returns [logits, model output]. Both share the
        model's layers, or those of a copy where it holds nested models.

    Raises:
        GraphError: there is no such tensor, or the model is not a classifier.
    """
    model = flattened(model)
    graph = read_graph(model)
    if len(graph.outputs) != 1 or len(graph.shapes[graph.outputs[0]]) != 2:
        shapes = [graph.shapes[i] for i in graph.outputs]
        raise GraphError(
            "Attribution needs a classifier with one output of shape (batch, classes). "
            f"Received: model={model.name!r} with outputs {shapes}. "
            "Search with eta=0 (no attribution)."
        )
    index = last_feature_map(graph, feature_layer)
    if feature_layer is not None and feature_layer in front:
        raise GraphError(
            "The attributed layer must lie behind the layers that change the image. "
            f"Received: feature_layer={feature_layer!r}. Name a convolution."
        )
    feature = keras_tensor(model, graph, index)
    _, backbone = split_front(model, front, feature)
    logits, output = logits_of(model), model.outputs[0]
    if output is logits:  # Keras refuses the same tensor twice
        output = keras.layers.Identity(name=f"{model.name}_output")(logits)
    head = keras.Model(feature, [logits, output], name=f"{model.name}_head")
    return backbone, head


def last_feature_map(graph: Graph, feature_layer: str | None = None) -> int:
    """Number of the feature map to attribute; see `split_head`."""
    spatial = [
        (call, i)
        for call in graph.calls
        for i in call.outputs
        if _is_feature_map(graph.shapes[i]) and not _is_inside(call)
    ]
    if feature_layer is not None:
        named = [i for call, i in spatial if call.name == feature_layer]
        if not named:
            names = [call.name for call, _ in spatial]
            raise GraphError(
                "The attributed layer must exist and return more than one pixel. "
                f"Received: feature_layer={feature_layer!r}. "
                f"{suggest(feature_layer, names)}"
            )
        candidates = named[-1:]
    else:
        last_first = [i for _, i in reversed(spatial)]
        candidates = sorted(last_first, key=lambda i: -len(graph.shapes[i]))
    for index in candidates:
        if _cuts(graph, index):
            return index
    raise GraphError(
        "Grad-CAM needs a feature map (batch, height, width, channels), or (batch, "
        "steps, channels), with more than one pixel that every path from the input to "
        "the output passes through. "
        f"Received: feature_layer={feature_layer!r} and a model without one. "
        "Name another layer, or search with eta=0 (no attribution)."
    )


def _is_feature_map(shape: tuple) -> bool:
    return len(shape) in (3, 4) and None not in shape[1:] and math.prod(shape[1:-1]) > 1


def _is_inside(call: Call) -> bool:
    """Whether a call is the depthwise part of a separable layer, so not its output."""
    return isinstance(call.layer, KernelPart) and KERNEL_KINDS[call.kind].depthwise


def _cuts(graph: Graph, index: int) -> bool:
    """Whether every path from a model input to the output passes through a tensor."""
    producers = graph.producers()
    pending, seen = list(graph.outputs), set()
    while pending:
        tensor = pending.pop()
        if tensor == index or tensor in seen:
            continue
        if tensor in graph.inputs:
            return False
        seen.add(tensor)
        pending.extend(producers[tensor].inputs)
    return True
