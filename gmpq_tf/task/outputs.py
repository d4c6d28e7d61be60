"""What each output of a model is: stated, or read from its graph, loss and labels."""

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
# They change neither what a number says nor where it stands among its image's.
SAME = frozenset(
    "InputQuantizer Identity Dropout SpatialDropout2D GaussianNoise GaussianDropout "
    "ActivityRegularization Cropping1D Cropping2D ZeroPadding2D UpSampling1D "
    "UpSampling2D Resizing MaxPooling2D AveragePooling2D GlobalMaxPooling2D "
    "GlobalAveragePooling2D Average Maximum Minimum Cast".split()
)
RESHAPES = frozenset(["Flatten", "Reshape", "Squeeze", "ExpandDims"])
# Names of losses, small and without underscores.
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
        name: key of the model's dict, or name of the layer.
        kind: what its numbers say.
        known_from: "stated", "graph", "loss", "labels", or "assumed" where nothing
            says it.
        shape: of one image's output.
    """

    name: str
    kind: OutputKind
    known_from: str
    shape: tuple

    @property
    def compared(self) -> str:
        """What is compared of it, in words."""
        text = self.kind.compared(self.shape)
        return f"{text} (assumed)" if self.known_from == "assumed" else text


def outputs_of(
    model: Any, stated: Any = None, labels: Any = None, loss: Any = None
) -> list[Output]:
    """Says what each output of a model is.

    A softmax gives class scores, wherever reshaping and nesting put it. Else the loss
    says it, if the model is compiled: cross-entropy of classes, binary cross-entropy,
    errors of numbers. Else a last sigmoid gives decisions at 0.5. Labels settle what is
    left: class numbers, rows with a single 1, zeros and ones, other numbers. Where they
    are missing too, several scores of an image are taken for classes (unless they have
    the shape of an input) and a single one for a number.

    Args:
        model: a functional Keras model, or what `quantize_model` made of it.
        stated: "classes", "binary" (probabilities, decided at 0.5), "binary_logit" (at
            0) or "numbers", for all outputs; or by name of the output, or one for each.
        labels: of some images, as `match_labels` takes them; None: none are known.
        loss: that the model is trained with; None: the one it was compiled with.

    Returns:
        One for each output, in the order of `model.outputs`.

    Raises:
        TaskError: a kind or a name of an output that there is not.
    """
    graph = read_graph(model)
    names = output_names(graph)
    given = match_labels(model, labels)
    kinds = _spread(stated, graph, "output_kinds", all_of=(str, *_KINDS))
    losses = _losses(loss or getattr(model, "loss", None), graph)
    producers = graph.producers()
    taken_in = {graph.shapes[i][1:] for i in graph.inputs}
    boxes = default_boxes_of(model)
    found = []
    for index, name, kind, loss, own in zip(
        graph.outputs, names, kinds, losses, given, strict=True
    ):
        shape = graph.shapes[index][1:]
        if kind is not None:
            found.append(Output(name, read_kind(kind), "stated", shape))
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


def _of_boxes(kind: OutputKind, known_from: str) -> tuple[OutputKind, str]:
    """What is said of each default box besides its offsets: classes."""
    return (Classes(), "graph") if known_from == "assumed" else (kind, known_from)


def classifier_kind(model: Any) -> OutputKind:
    """What the one output of a model says that is trained on class numbers.

    Args:
        model: a functional model with one output [B, classes], or [B, 1] for two.

    Returns:
        `Classes`, or for one number `Binary`, at 0.5 after a sigmoid and else at 0.
    """
    graph = read_graph(model)
    index = graph.outputs[0]
    last = _of_graph(graph, graph.producers(), index)
    if graph.shapes[index][-1] == 1:
        return last if isinstance(last, Binary) else Binary(0.0)
    return last if isinstance(last, Classes) else Classes()


def match_labels(model: Any, labels: Any) -> list[Any]:
    """Labels of each output, None where there are none.

    Args:
        model: a functional Keras model, or its graph.
        labels: an array, where there is one output; a list or tuple in the order of the
            outputs, or a dict by name. None: no labels; likewise for each output.

    Returns:
        In the order of `model.outputs`.

    Raises:
        TaskError: a name of no output, or labels for another number of outputs.
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
    """Whether a list of labels can be meant for a dict of outputs in one order only.

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
    """Names of a model's outputs: keys of its dict, else names of layers."""
    places = list(_places(graph.output_structure, ""))
    names = []
    for index in graph.outputs:
        place = next(p for p in places if p[1] == index)
        if place in places and len(places) > 1:
            places.remove(place)  # the same tensor may stand at two places
        names.append(place[0] or _layer_names(graph, index)[-1])
    return names


_KINDS = (Classes, Binary, Numbers)


@dataclass(frozen=True)
class _Evidence:
    """What is known of an output."""

    shape: tuple
    like_input: bool
    graph: OutputKind | None
    loss: OutputKind | None
    labels: str | None

    def conclusion(self) -> tuple[OutputKind, str]:
        """The kind, and what it is known from."""
        if isinstance(self.graph, (Classes, Numbers)):
            return self.graph, "graph"
        if isinstance(self.loss, Classes) and self.shape[-1] != 1:
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
        classes = self.shape[-1] != 1 and not self.like_input
        return (Classes() if classes else Numbers()), "assumed"

    def _of_sigmoid(self, sigmoid: Binary) -> tuple[OutputKind, str]:
        """Of values from 0 to 1: decisions, or numbers that happen to lie there."""
        if self.labels == "numbers":
            return Numbers(), "labels"
        if isinstance(self.loss, Numbers) and self.labels is None:
            return self.loss, "loss"
        if isinstance(self.loss, Binary):
            return sigmoid, "loss"
        if self.labels is None and self.like_input and self.shape[-1] != 1:
            return Numbers(), "assumed"  # an image made anew
        return sigmoid, "graph" if self.labels is None else "labels"


def _of_graph(
    graph: Graph, producers: Mapping[int, Call], index: int
) -> OutputKind | None:
    """What the last activation before an output says, or its default boxes."""
    call = producers.get(index)
    if call is None:
        return None
    if isinstance(call.layer, DefaultBoxesLayer):
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
    """Axis of a softmax, whether a layer or the activation inside one."""
    inner = getattr(layer, "activation", None)
    axes = [getattr(part, "axis", None) for part in (layer, inner)]
    return next((axis for axis in axes if isinstance(axis, int)), None)


def _moved_axis(call: Call, axis: int, before: tuple, after: tuple) -> int | None:
    """Where the axis of classes lies after a call; None where it is an axis no more."""
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
    """What labels of some images look like: None for those of another shape."""
    if labels.dtype.kind not in "biuf":
        return None
    own, single = labels.shape[1:], shape[-1] == 1
    if not single and (_fits(own, shape[:-1]) or _fits(own, (*shape[:-1], 1))):
        return "indices"
    if not _fits(own, shape) and not (single and _fits(own, shape[:-1])):
        return None
    values = {float(v) for v in np.unique(labels)[:3]}
    if not (values <= {0.0, 1.0} or values <= {-1.0, 1.0}):
        return "numbers"
    alone = labels.size and not single and np.all((labels > 0.5).sum(axis=-1) == 1)
    return "one-hot" if alone else "bits"


def _fits(own: tuple, shape: tuple) -> bool:
    return len(own) == len(shape) and all(
        b in (None, a) for a, b in zip(own, shape, strict=True)
    )


def _losses(loss: Any, graph: Graph) -> list[OutputKind | None]:
    """What the loss that a model is trained with says of each output."""
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    try:
        spread = _spread(loss, graph, "loss", all_of=object)
    except TaskError:  # of an earlier model: no reason to refuse this one
        return [None] * len(graph.outputs)
    ranks = [len(graph.shapes[index]) for index in graph.outputs]
    return [_of_loss(part, rank) for part, rank in zip(spread, ranks, strict=True)]


def _of_loss(loss: Any, rank: int) -> OutputKind | None:
    # A class, or a function as it is, bound to options, or wrapped by Keras.
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
    """An option of a loss, whether an attribute or bound to its function."""
    bound = getattr(loss, "_fn_kwargs", None) or getattr(loss, "keywords", None) or {}
    return getattr(loss, name, bound.get(name, default))


def _spread(given: Any, graph: Graph, what: str, all_of: Any = ()) -> list[Any]:
    """One value an output, from a dict by name, a list, or one for all.

    Args:
        given: the value.
        graph: of the model.
        what: what the value is called in errors.
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
    """Names of the layers that give an output, the one a user wrote last.

    In a quantized model a head's softmax is a layer of its own, and a quantizer may
    follow each.
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
    """The call that makes a tensor, and the names of quantizers between the two."""
    quantizers = []
    call = producers.get(index)
    while call is not None and call.role is Role.QUANTIZER:
        quantizers.append(call.name)
        call = producers.get(call.inputs[0])
    return call, quantizers


def _places(structure: Any, path: str) -> Any:
    """(key path, tensor) of what nested outputs hold; path "" outside of dicts."""
    if isinstance(structure, Ref):
        yield path, structure.index
    elif isinstance(structure, Mapping):
        for key, part in structure.items():
            yield from _places(part, f"{path}/{key}" if path else str(key))
    else:
        for number, part in enumerate(structure):
            yield from _places(part, f"{path}/{number}" if path else "")


def _plain(name: str) -> str:
    """`sparse_categorical_crossentropy`, `SoftmaxV2`, `softmax_v2` in one spelling."""
    return re.sub(r"_?v\d+$", "", name, flags=re.IGNORECASE).replace("_", "").lower()
