"""Finds the kind of each output of a model: stated, or by graph, loss and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gmpq_tf.detection import default_boxes_of
from gmpq_tf.graph import Graph, read_graph
from gmpq_tf.task.evidence import Evidence, kind_by_graph, kinds_by_loss, look_of_labels
from gmpq_tf.task.kinds import (
    Binary,
    Classes,
    Numbers,
    OutputKind,
    check_yes_or_no,
    read_kind,
)
from gmpq_tf.task.output_names import match_labels, output_names, spread_over

_KINDS = (Classes, Binary, Numbers)


@dataclass(frozen=True)
class Output:
    """One output of a model.

    Args:
        name: key in the model's dict of outputs, or name of the layer.
        kind: the meaning of its numbers.
        known_from: "stated", "graph", "loss", "labels", or "assumed" without evidence.
        shape: shape of the output for one image.
    """

    name: str
    kind: OutputKind
    known_from: str
    shape: tuple

    @property
    def compared(self) -> str:
        """Description of the compared decisions or numbers, in words."""
        text = self.kind.compared(self.shape)
        return f"{text} (assumed)" if self.known_from == "assumed" else text


def outputs_of(
    model: Any, stated: Any = None, labels: Any = None, loss: Any = None
) -> list[Output]:
    """Finds the kind of each output of a model.

    The evidence, the strongest first (labels that are class numbers also outweigh a
    sigmoid):

    1. A softmax gives class scores, also before reshaping and inside nested models.
    2. The loss of a compiled model: cross-entropy of classes, binary cross-entropy, or
       errors of numbers.
    3. A final sigmoid gives decisions at 0.5.
    4. Labels: class numbers, rows with a single 1, zeros and ones, or other numbers.
    5. Otherwise several scores per image are assumed to be classes (unless they have
       the shape of an input), and a single one a number.

    Labels between 0 and 1 of a sigmoid, or of a binary cross-entropy, make numbers of
    it; others, such as masks of 0 and 255, are refused.

    Args:
        model: a functional Keras model, or a student from `quantize_model`.
        stated: "classes", "binary" (probabilities, decided at 0.5), "binary_logit" (at
            0) or "numbers", for all outputs; or a dict by name, or a list.
        labels: labels of some images, as `match_labels` takes them; None: unknown.
        loss: the loss of its training; None: the one it was compiled with.

    Returns:
        An `Output` for each output, in the order of `model.outputs`.

    Raises:
        TaskError: there is no such kind, or no output of that name; or labels are not
            finite, or beyond 0 to 1 where probabilities are trained.
    """
    graph = read_graph(model)
    names = output_names(graph)
    given = match_labels(model, labels)
    kinds = spread_over(stated, graph, "output_kinds", all_of=(str, *_KINDS))
    losses = kinds_by_loss(loss or getattr(model, "loss", None), graph)
    producers = graph.producers()
    taken_in = {graph.shapes[i][1:] for i in graph.inputs}
    boxes, proposed = default_boxes_of(model), _proposed(graph)
    found = []
    for index, name, kind, loss, own in zip(
        graph.outputs, names, kinds, losses, given, strict=True
    ):
        shape = graph.shapes[index][1:]
        if kind is not None:
            found.append(Output(name, read_kind(kind), "stated", shape))
            continue
        if index in proposed:
            found.append(Output(name, proposed[index], "graph", shape))
            continue
        seen = Evidence(
            shape,
            shape in taken_in,
            kind_by_graph(graph, producers, index),
            loss,
            None if own is None else look_of_labels(np.asarray(own), shape),
        )
        conclusion = seen.conclusion()
        if seen.says_yes_or_no and conclusion == (Numbers(), "labels"):
            check_yes_or_no(np.asarray(own))
        if boxes is not None and shape[:-1] == (boxes.count,):
            conclusion = _of_boxes(*conclusion)
        found.append(Output(name, *conclusion, shape))
    return found


def _proposed(graph: Graph) -> dict[int, OutputKind]:
    """Tensor number -> kind, for scores (object or none) and offsets of anchors."""
    kinds: tuple[OutputKind, OutputKind] = (Binary(0.0), Numbers())
    return {
        index: kind
        for call in graph.calls
        if call.kind == "RegionProposal"
        for index, kind in zip(call.inputs, kinds, strict=True)
    }


def _of_boxes(kind: OutputKind, known_from: str) -> tuple[OutputKind, str]:
    """Returns classes in place of an assumed kind: the scores of a detector."""
    return (Classes(), "graph") if known_from == "assumed" else (kind, known_from)


def classifier_kind(model: Any) -> OutputKind:
    """Returns the kind of the output of a model that is trained on class numbers.

    Args:
        model: a functional model with one output [B, classes], or [B, 1] for two.

    Returns:
        `Classes`; for a single number `Binary`, at 0.5 after a sigmoid and else at 0.
    """
    graph = read_graph(model)
    index = graph.outputs[0]
    last = kind_by_graph(graph, graph.producers(), index)
    if graph.shapes[index][-1] == 1:
        return last if isinstance(last, Binary) else Binary(0.0)
    return last if isinstance(last, Classes) else Classes()
