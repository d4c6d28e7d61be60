"""Splits a model at its last feature map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from gmpq_tf.detection import DefaultBoxesLayer
from gmpq_tf.detection.region_layers import RegionAlign, RegionOutputs, is_detector
from gmpq_tf.graph import (
    Call,
    Graph,
    GraphError,
    KernelPart,
    functional_of,
    is_searchable,
    read_graph,
)
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.front import keras_tensor, split_front
from gmpq_tf.transform.rewrite import all_scores, flattened, logits_of


def split_head(
    model: keras.Model,
    feature_layer: str | None = None,
    front: Sequence[str] = (),
) -> tuple[keras.Model, keras.Model]:
    """Splits a model into `backbone` (image -> A) and `head` (A -> scores).

    For a detector the backbone returns a list: A, and the other tensors that the head
    reads, such as the scores of levels before A (`attributed_map`). For a detector of
    two stages A is the map that regions are cut out of, and the logits are the rows of
    `RegionOutputs`.

    Args:
        model: functional classifier, one input and one output
            [B, classes] (or [B, 1] for two classes), logits, softmax or sigmoid; or a
            detector with default boxes or of two stages.
        feature_layer: layer whose output is A; None: the last [B, H, W, C] tensor with
            more than one pixel that every path to the output passes through, or, where
            there is none, the last such [B, T, C] tensor with more than one step; for a
            detector see `attributed_map`.
        front: names of leading layers that the caller runs first (see `split_front`);
            the backbone takes their results.

    Returns:
        (backbone, head); the head returns [logits, model output]. Both share the
        model's layers, or those of a copy where it holds nested models.

    Raises:
        GraphError: there is no such tensor, or the model is neither a classifier nor a
            detector.
    """
    model = flattened(model)
    graph = read_graph(model)
    if feature_layer is not None and feature_layer in front:
        raise GraphError(
            "The attributed layer must lie behind the layers that change the image. "
            f"Received: feature_layer={feature_layer!r}. Name a convolution."
        )
    if is_detector(model):
        return _split_detector(model, graph, feature_layer, front)
    if len(graph.outputs) != 1 or len(graph.shapes[graph.outputs[0]]) != 2:
        shapes = [graph.shapes[i] for i in graph.outputs]
        raise GraphError(
            "Attribution needs a classifier with one output of shape (batch, classes), "
            "or a detector with default boxes or of two stages. "
            f"Received: model={model.name!r} with outputs {shapes}. "
            "Search with eta=0 (no attribution)."
        )
    index = last_feature_map(graph, feature_layer)
    feature = keras_tensor(model, graph, index)
    _, backbone = split_front(model, front, feature)
    logits, output = logits_of(model), model.outputs[0]
    if output is logits:  # Keras refuses the same tensor twice
        output = keras.layers.Identity(name=f"{model.name}_output")(logits)
    head = keras.Model(feature, [logits, output], name=f"{model.name}_head")
    return backbone, head


def last_feature_map(graph: Graph, feature_layer: str | None = None) -> int:
    """Number of the feature map to attribute; see `split_head`.

    Raises:
        GraphError: no feature map has every path of the model through it.
    """
    for index in _candidates(graph, feature_layer):
        if _cuts(graph, index):
            return index
    raise GraphError(
        "Grad-CAM needs a feature map (batch, height, width, channels), or (batch, "
        "steps, channels), with more than one pixel that every path from the input to "
        "the output passes through. "
        f"Received: feature_layer={feature_layer!r} and a model without one. "
        "Name another layer, or search with eta=0 (no attribution)."
    )


def attributed_map(graph: Graph, scores: int, feature_layer: str | None = None) -> int:
    """Number of the feature map of a detector to attribute.

    It is the last map on which the scores of all levels but at most one depend, and
    those of more than half of the levels. In SSD that is the end of the backbone: its
    own scores and those of the extra layers depend on it, and only the scores of a
    finer map before it do not.

    Args:
        graph: graph of a detector.
        scores: number of the tensor with its scores.
        feature_layer: layer whose output is attributed, if the scores of a level depend
            on it; None: as above.

    Raises:
        GraphError: there is no such map.
    """
    sources = [_upstream(graph, call.inputs) for call in _levels(graph, scores)]
    least = 1 if feature_layer else max(len(sources) - 1, len(sources) // 2 + 1)
    for index in _candidates(graph, feature_layer):
        if sum(index in tensors for tensors in sources) >= least:
            return index
    raise GraphError(
        "Grad-CAM of a detector needs a feature map (batch, height, width, channels) "
        f"that the scores of {least} of its {len(sources)} levels depend on. "
        f"Received: feature_layer={feature_layer!r} and a model without one. Name "
        "another layer, or search with eta=0 (no attribution)."
    )


def _split_detector(
    model: keras.Model, graph: Graph, feature_layer: str | None, front: Sequence[str]
) -> tuple[keras.Model, keras.Model]:
    all_logits = all_scores(model)
    number, index = _scores_and_map(graph, feature_layer)
    wanted = [index, *_bypassing(graph, index)]
    read = [keras_tensor(model, graph, each) for each in wanted]
    _, backbone = split_front(model, front, read)
    logits = all_logits[number][0]

    def renamed(output: Any) -> Any:  # Keras refuses the same tensor twice
        again = output is logits or any(output is tensor for tensor in read)
        name = f"{model.name}_{output._keras_history.operation.name}_output"
        return keras.layers.Identity(name=name)(output) if again else output

    struct = functional_of(model)._outputs_struct
    outputs = keras.tree.map_structure(renamed, struct)
    head = keras.Model(read, [logits, outputs], name=f"{model.name}_head")
    return backbone, head


def _scores_and_map(graph: Graph, feature_layer: str | None) -> tuple[int, int]:
    """Index of a detector's scores among its outputs, and number of its feature map."""
    layers = [graph.producers()[index].layer for index in graph.outputs]
    aligned = next((c for c in graph.calls if isinstance(c.layer, RegionAlign)), None)
    if aligned is not None:
        rows = [isinstance(layer, RegionOutputs) for layer in layers]
        return rows.index(True), _aligned_map(graph, aligned, feature_layer)
    scores = [i for i, x in enumerate(layers) if not isinstance(x, DefaultBoxesLayer)]
    if len(scores) != 1:
        shapes = [graph.shapes[i] for i in graph.outputs]
        raise GraphError(
            "Attribution needs a detector whose outputs are offsets and scores alone. "
            f"Received: outputs of {shapes}. Leave the others "
            "out, or search with eta=0 (no attribution)."
        )
    (number,) = scores
    return number, attributed_map(graph, graph.outputs[number], feature_layer)


def _aligned_map(graph: Graph, aligned: Call, feature_layer: str | None) -> int:
    """Number of the map that regions are cut out of, or of a named one before it."""
    last = aligned.inputs[0]
    if feature_layer is None:
        return last
    before = _upstream(graph, [last])
    for index in _candidates(graph, feature_layer):
        if index in before:
            return index
    raise GraphError(
        "Grad-CAM of a detector of two stages needs a feature map that its regions are "
        f"cut out of. Received: feature_layer={feature_layer!r}. Name a layer of the "
        "backbone before them, or leave it out."
    )


def _levels(graph: Graph, scores: int) -> list[Call]:
    """The layers with weights that make the scores, one for each level."""
    producers, pending, found = graph.producers(), [scores], []
    while pending:
        call = producers.get(pending.pop())
        if call is not None and is_searchable(call.layer):
            found.append(call)
        elif call is not None:
            pending.extend(call.inputs)
    return found


def _upstream(graph: Graph, tensors: Iterable[int]) -> set[int]:
    """The given tensors, and all tensors that they depend on."""
    producers, pending, seen = graph.producers(), list(tensors), set()
    while pending:
        tensor = pending.pop()
        if tensor not in seen:
            seen.add(tensor)
            call = producers.get(tensor)
            pending.extend(call.inputs if call else ())
    return seen


def _bypassing(graph: Graph, index: int) -> list[int]:
    """Tensors that calls behind a feature map read, and that do not depend on it."""
    behind = {index}
    for call in graph.calls:
        if behind.intersection(call.inputs):
            behind.update(call.outputs)
    needed = _upstream(graph, graph.outputs)
    read = {
        tensor
        for call in graph.calls
        if behind.intersection(call.inputs) and needed.intersection(call.outputs)
        for tensor in call.inputs
    }
    return sorted((read | set(graph.outputs)) - behind)


def _candidates(graph: Graph, feature_layer: str | None) -> list[int]:
    """Numbers of the feature maps, those of images first, the last one in front.

    With `feature_layer` only the last output of that layer.
    """
    spatial = [
        (call, i)
        for call in graph.calls
        for i in call.outputs
        if _is_feature_map(graph.shapes[i]) and not _is_inside(call)
    ]
    if feature_layer is None:
        last_first = [i for _, i in reversed(spatial)]
        return sorted(last_first, key=lambda i: -len(graph.shapes[i]))
    named = [i for call, i in spatial if call.name == feature_layer]
    if not named:
        names = [call.name for call, _ in spatial]
        raise GraphError(
            "The attributed layer must exist and return more than one pixel. "
            f"Received: feature_layer={feature_layer!r}. "
            f"{suggest(feature_layer, names)}"
        )
    return named[-1:]


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
