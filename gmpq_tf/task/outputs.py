"""Finds the kind of each output of a model: stated, or by graph, loss and labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmpq_tf.detection import DefaultBoxesLayer, default_boxes_of
from gmpq_tf.graph import Call, Graph, Ref, is_searchable, read_graph
from gmpq_tf.layer_kinds import ACTIVATION, Role
from gmpq_tf.spelling import suggest
from gmpq_tf.task.kinds import (
    Binary,
    Classes,
    Numbers,
    OutputKind,
    TaskError,
    read_kind,
)

SOFTMAXES = frozenset(["softmax", "logsoftmax", "sparsemax"])
SIGMOIDS = frozenset(["sigmoid", "hardsigmoid", "sparsesigmoid"])
# Layers that change neither the meaning of a number nor the axis of the classes.
SAME = frozenset(
    "InputQuantizer Identity Dropout SpatialDropout2D GaussianNoise GaussianDropout "
    "ActivityRegularization Cropping1D Cropping2D ZeroPadding2D UpSampling1D "
    "UpSampling2D Resizing MaxPooling2D AveragePooling2D GlobalMaxPooling2D "
    "GlobalAveragePooling2D Average Maximum Minimum Cast".split()
)
RESHAPES = frozenset(["Flatten", "Reshape", "Squeeze", "ExpandDims"])
# Names of losses, in lower case and without underscores.
CLASS_LOSSES = frozenset(
    "sparsecategoricalcrossentropy categoricalcrossentropy categoricalhinge kld "
    "categoricalfocalcrossentropy categoricalgeneralizedcrossentropy "
    "kldivergence hardnegativecrossentropy".split()
)
BINARY_LOSSES = frozenset(["binarycrossentropy", "bce", "binaryfocalcrossentropy"])
HINGES = frozenset(["hinge", "squaredhinge"])
NUMBER_LOSSES = frozenset(
    "meansquarederror mse meanabsoluteerror mae meanabsolutepercentageerror mape "
    "meansquaredlogarithmicerror msle huber logcosh poisson cosinesimilarity "
    "boxloss".split()
)


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

    Args:
        model: a functional Keras model, or a student from `quantize_model`.
        stated: "classes", "binary" (probabilities, decided at 0.5), "binary_logit" (at
            0) or "numbers", for all outputs; or a dict by name, or a list.
        labels: labels of some images, as `match_labels` takes them; None: unknown.
        loss: the loss of its training; None: the one it was compiled with.

    Returns:
        One for each output, in the order of `model.outputs`.

    Raises:
        TaskError: there is no such kind, or no output of that name.
    """
    graph = read_graph(model)
    names = output_names(graph)
    given = match_labels(model, labels)
    kinds = _spread(stated, graph, "output_kinds", all_of=(str, *_KINDS))
    losses = _losses(loss or getattr(model, "loss", None), graph)
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
        seen = _Evidence(
            shape,
            shape in taken_in,
            _of_graph(graph, producers, index),
            loss,
            None if own is None else _of_labels(np.asarray(own), shape),
        )
        conclusion = seen.conclusion()
        if boxes is not None and shape[:-1] == (boxes.count,):
            conclusion = _of_boxes(*conclusion)
        found.append(Output(name, *conclusion, shape))
    return found


def _proposed(graph: Graph) -> dict[int, OutputKind]:
    """Tensor number -> what is said of anchors: an object or none, and offsets."""
    kinds: tuple[OutputKind, OutputKind] = (Binary(0.0), Numbers())
    return {
        index: kind
        for call in graph.calls
        if call.kind == "RegionProposal"
        for index, kind in zip(call.inputs, kinds, strict=True)
    }


def _of_boxes(kind: OutputKind, known_from: str) -> tuple[OutputKind, str]:
    """Replaces an assumed kind of a detector's scores by classes."""
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
    last = _of_graph(graph, graph.producers(), index)
    if graph.shapes[index][-1] == 1:
        return last if isinstance(last, Binary) else Binary(0.0)
    return last if isinstance(last, Classes) else Classes()


def match_labels(model: Any, labels: Any) -> list[Any]:
    """Assigns labels to the outputs of a model.

    Args:
        model: a functional Keras model, or its graph.
        labels: an array [B, ...], where there is one output; a list or tuple in the
            order of the outputs, or a dict by name. None, for all or for one output: no
            labels.

    Returns:
        Labels or None for each output, in the order of `model.outputs`.

    Raises:
        TaskError: there is no output of that name, or another number of outputs.
    """
    graph = model if isinstance(model, Graph) else read_graph(model)
    if len(graph.outputs) == 1 and not isinstance(labels, Mapping):
        listed = isinstance(labels, (list, tuple)) and len(labels) == 1
        array = labels[0] if listed and np.ndim(labels[0]) else labels
        return [None if array is None else np.asarray(array)]
    if _is_ordered(labels, graph):
        spread = list(labels)
    else:
        spread = _spread(labels, graph, "labels")
    return [None if part is None else np.asarray(part) for part in spread]


def _is_ordered(labels: Any, graph: Graph) -> bool:
    """Whether a list of labels for a dict of outputs is unambiguous.

    Keras sorts the keys; a user may have meant the order they were written in.
    """
    if not isinstance(labels, (list, tuple)) or len(labels) != len(graph.outputs):
        return False
    if not isinstance(graph.output_structure, Mapping):
        return False
    written = [index for _, index in _places(graph.output_structure, "")]
    order = [graph.outputs.index(index) for index in written]
    shapes = [np.shape(part)[1:] for part in labels]
    return order == sorted(order) or [shapes[i] for i in order] != shapes


def output_names(graph: Graph) -> list[str]:
    """Returns names of a model's outputs: keys of its dict, else names of layers."""
    return [
        key or _layer_names(graph, index)[-1]
        for key, index in zip(output_keys(graph), graph.outputs, strict=True)
    ]


def output_keys(graph: Graph) -> list[str]:
    """Returns the keys of a model's outputs, such as `boxes` or `a/0`; "" for none."""
    places = list(_places(graph.output_structure, ""))
    keys = []
    for index in graph.outputs:
        place = next(p for p in places if p[1] == index)
        if place in places and len(places) > 1:
            places.remove(place)  # the same tensor may stand at two places
        keys.append(place[0])
    return keys


_KINDS = (Classes, Binary, Numbers)


@dataclass(frozen=True)
class _Evidence:
    """What is known about an output, from each source; None: nothing."""

    shape: tuple
    like_input: bool
    graph: OutputKind | None
    loss: OutputKind | None
    labels: str | None

    def conclusion(self) -> tuple[OutputKind, str]:
        """Returns the kind, and the source it is known from."""
        if isinstance(self.graph, (Classes, Numbers)):
            return self.graph, "graph"
        if isinstance(self.loss, Classes) and not _is_single(self.shape):
            return self.loss, "loss"
        if self.labels == "indices":
            return Classes(), "labels"
        if isinstance(self.graph, Binary):
            return self._of_sigmoid(self.graph)
        if isinstance(self.loss, Numbers):
            return self.loss, "loss"
        if self.labels == "numbers":
            return Numbers(), "labels"
        if isinstance(self.loss, Binary):
            return self.loss, "loss"
        if self.labels is not None:
            return (Classes() if self.labels == "one-hot" else Binary(0.0)), "labels"
        classes = not _is_single(self.shape) and not self.like_input
        return (Classes() if classes else Numbers()), "assumed"

    def _of_sigmoid(self, sigmoid: Binary) -> tuple[OutputKind, str]:
        """Decides whether values in 0..1 are probabilities or plain numbers."""
        if self.labels == "numbers":
            return Numbers(), "labels"
        if isinstance(self.loss, Numbers) and self.labels is None:
            return self.loss, "loss"
        if isinstance(self.loss, Binary):
            return sigmoid, "loss"
        if self.labels is None and self.like_input and not _is_single(self.shape):
            return Numbers(), "assumed"  # a reconstructed image
        return sigmoid, "graph" if self.labels is None else "labels"


def _of_graph(
    graph: Graph, producers: Mapping[int, Call], index: int
) -> OutputKind | None:
    """Returns the kind that an output's last activation or default boxes imply."""
    call = producers.get(index)
    if call is None:
        return None
    if isinstance(call.layer, DefaultBoxesLayer) or call.role is Role.HOST:
        return Numbers()
    kind = _of_activation(call, len(graph.shapes[index]))
    if kind is not None or not call.inputs:
        return kind
    passes = {*SAME, *RESHAPES, "Permute", "Concatenate"}
    linear = call.kind == ACTIVATION and call.activation == "linear"
    if is_searchable(call.layer) or (call.kind not in passes and not linear):
        return None
    kinds = {_of_graph(graph, producers, i) for i in call.inputs}
    kind = kinds.pop()
    if kinds or not isinstance(kind, Classes):
        return None if kinds else kind
    before, after = graph.shapes[call.inputs[0]], graph.shapes[index]
    axis = _moved_axis(call, kind.axis + len(before), before, after)
    return None if axis is None else Classes(axis - len(after))


def _of_activation(call: Call, rank: int) -> OutputKind | None:
    names = {_plain(call.activation), _plain(call.kind)}
    if names & SOFTMAXES:
        own = None if call.kind == ACTIVATION else _axis_of(call.layer)
        axis = -1 if own is None else own
        return Classes(axis if axis < 0 else axis - rank)
    return Binary(0.5) if names & SIGMOIDS else None


def _axis_of(layer: Any) -> int | None:
    """Returns the axis of a softmax, which is a layer or a layer's activation."""
    inner = getattr(layer, "activation", None)
    axes = [getattr(part, "axis", None) for part in (layer, inner)]
    return next((axis for axis in axes if isinstance(axis, int)), None)


def _moved_axis(call: Call, axis: int, before: tuple, after: tuple) -> int | None:
    """Returns the axis of classes after a call; None if it no longer is an axis."""
    if call.kind == "Permute":
        return (0, *call.layer.dims).index(axis)
    if call.role is Role.JOIN:
        own = call.layer.axis % len(after)
        return None if own == axis else axis
    if call.kind not in RESHAPES:  # pools take away axes before the last
        return axis if len(before) == len(after) else axis - len(before) + len(after)
    size, following = before[axis], _product(before[axis + 1 :])
    for place in range(len(after) - 1, 0, -1):
        if (after[place], _product(after[place + 1 :])) == (size, following):
            return place
    return None


def _product(sizes: Sequence[int | None]) -> int | None:
    return None if None in sizes else int(np.prod(sizes, dtype=int))


def _of_labels(labels: np.ndarray, shape: tuple) -> str | None:
    """Returns what labels of some images look like; None if their shape differs."""
    if labels.dtype.kind not in "biuf":
        return None
    own, single = labels.shape[1:], _is_single(shape)
    if not single and (_fits(own, shape[:-1]) or _fits(own, (*shape[:-1], 1))):
        return "indices"
    if not _fits(own, shape) and not (single and _fits(own, shape[:-1])):
        return None
    values = {float(v) for v in np.unique(labels)[:3]}
    if not (values <= {0.0, 1.0} or values <= {-1.0, 1.0}):
        return "numbers"
    alone = labels.size and not single and np.all((labels > 0.5).sum(axis=-1) == 1)
    return "one-hot" if alone else "bits"


def _is_single(shape: tuple) -> bool:
    """Whether there is one number at each place, with or without an axis of its own."""
    return shape[-1:] in ((), (1,))


def _fits(own: tuple, shape: tuple) -> bool:
    return len(own) == len(shape) and all(
        b in (None, a) for a, b in zip(own, shape, strict=True)
    )


def _losses(loss: Any, graph: Graph) -> list[OutputKind | None]:
    """Returns the kind that the loss of training implies for each output, or None."""
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    try:
        spread = _spread(loss, graph, "loss", all_of=object)
    except TaskError:  # a loss for other outputs, compiled earlier, is ignored
        return [None] * len(graph.outputs)
    ranks = [len(graph.shapes[index]) for index in graph.outputs]
    return [_of_loss(part, rank) for part, rank in zip(spread, ranks, strict=True)]


def _of_loss(loss: Any, rank: int) -> OutputKind | None:
    # A class, or a function: plain, bound to options, or wrapped by Keras.
    if type(loss).__name__ == "LossFunctionWrapper":
        function = loss.fn
    else:
        function = getattr(loss, "func", loss)
    named = getattr(function, "__name__", type(function).__name__)
    name = _plain(loss if isinstance(loss, str) else named)
    if name in CLASS_LOSSES:
        axis = int(_option(loss, "axis", -1))
        return Classes(axis if axis < 0 else axis - rank)
    if name in BINARY_LOSSES:
        return Binary(0.0 if _option(loss, "from_logits", False) else 0.5)
    if name in HINGES:
        return Binary(0.0)
    return Numbers() if name in NUMBER_LOSSES else None


def _option(loss: Any, name: str, default: Any) -> Any:
    """Returns an option of a loss: an attribute, or an argument of its function."""
    bound = getattr(loss, "_fn_kwargs", None) or getattr(loss, "keywords", None) or {}
    return getattr(loss, name, bound.get(name, default))


def _spread(given: Any, graph: Graph, what: str, all_of: Any = ()) -> list[Any]:
    """Returns one value per output, from a dict by name, a list, or one for all.

    Args:
        given: the dict, list or value.
        graph: the graph of the model.
        what: name of the value in errors.
        all_of: types of a value that stands for all outputs.
    """
    count = len(graph.outputs)
    if given is None:
        return [None] * count
    if isinstance(given, Mapping):
        return _by_name(given, graph, what)
    if isinstance(given, (list, tuple)) and not isinstance(
        graph.output_structure, Mapping
    ):
        if len(given) == count:
            return list(given)
    elif all_of and isinstance(given, all_of):
        return [given] * count
    names = ", ".join(map(repr, output_names(graph)))
    raise TaskError(
        f"{what} of a model with {count} output(s) must be a dict by name or, unless "
        "the outputs are a dict, a list in their order. "
        f"Received: {type(given).__name__}. The outputs are {names}."
    )


def _by_name(given: Mapping, graph: Graph, what: str) -> list[Any]:
    names = output_names(graph)
    known = [
        {name, *_layer_names(graph, index)}
        for name, index in zip(names, graph.outputs, strict=True)
    ]
    for key in given:
        if not any(key in each for each in known):
            raise TaskError(
                f"{what} must be by the names of the model's outputs. "
                f"Received: {key!r}. {suggest(str(key), names)}"
            )
    return [
        next((given[key] for key in (name, *sorted(each)) if key in given), None)
        for name, each in zip(names, known, strict=True)
    ]


def _layer_names(graph: Graph, index: int) -> list[str]:
    """Returns names of the layers that make an output; the user's own comes last.

    In a quantized model the softmax of a head is a separate layer, and a quantizer may
    follow each layer.
    """
    producers = graph.producers()
    call, quantizers = _maker(producers, index)
    if call is None:  # the model returns its input
        return quantizers or [graph.input_names[graph.inputs.index(index)]]
    names = [*quantizers, call.name]
    before = _maker(producers, call.inputs[0])[0] if call.inputs else None
    if before is not None and call.name.startswith(f"{before.name}_activation"):
        names.append(before.name)
    return names


def _maker(producers: Mapping[int, Call], index: int) -> tuple[Call | None, list[str]]:
    """Returns the call that makes a tensor, and the quantizers in between."""
    quantizers = []
    call = producers.get(index)
    while call is not None and call.role is Role.QUANTIZER:
        quantizers.append(call.name)
        call = producers.get(call.inputs[0])
    return call, quantizers


def _places(structure: Any, path: str) -> Any:
    """Yields (key path, tensor) of nested outputs; the path is "" outside of dicts."""
    if isinstance(structure, Ref):
        yield path, structure.index
    elif isinstance(structure, Mapping):
        for key, part in structure.items():
            yield from _places(part, f"{path}/{key}" if path else str(key))
    else:
        for number, part in enumerate(structure):
            yield from _places(part, f"{path}/{number}" if path else "")


def _plain(name: str) -> str:
    """Returns a name in lower case without underscores and version: `SoftmaxV2`."""
    return re.sub(r"_?v\d+$", "", name, flags=re.IGNORECASE).replace("_", "").lower()
