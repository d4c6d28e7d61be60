"""What graph, loss and labels each say about the meaning of an output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmpq_tf.detection import DefaultBoxesLayer
from gmpq_tf.graph import Call, Graph, is_searchable
from gmpq_tf.layer_kinds import ACTIVATION, Role
from gmpq_tf.task.kinds import Binary, Classes, Numbers, OutputKind, TaskError
from gmpq_tf.task.output_names import spread_over

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
class Evidence:
    """What is known about an output, from each source; None: nothing.

    Args:
        shape: shape of the output for one image.
        like_input: whether an input of the model has this shape.
        graph: kind by its last activation or by default boxes.
        loss: kind by the loss of training.
        labels: what the labels look like: "indices" of classes, "one-hot" rows, "bits"
            (two values) or other "numbers".
    """

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

    @property
    def says_yes_or_no(self) -> bool:
        """Whether graph and loss, whatever the labels are, speak of probabilities."""
        return isinstance(self.loss or self.graph, Binary)

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


def kind_by_graph(
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
    kinds = {kind_by_graph(graph, producers, i) for i in call.inputs}
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


def look_of_labels(labels: np.ndarray, shape: tuple) -> str | None:
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


def kinds_by_loss(loss: Any, graph: Graph) -> list[OutputKind | None]:
    """Returns the kind that the loss of training implies for each output, or None."""
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    try:
        spread = spread_over(loss, graph, "loss", all_of=object)
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


def _plain(name: str) -> str:
    """Returns a name in lower case without underscores and version: `SoftmaxV2`."""
    return re.sub(r"_?v\d+$", "", name, flags=re.IGNORECASE).replace("_", "").lower()
