"""The names of a model's outputs, and what is given for them by name or in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gmpq_tf.graph import Call, Graph, Ref, read_graph
from gmpq_tf.layer_kinds import Role
from gmpq_tf.spelling import suggest
from gmpq_tf.task.kinds import TaskError


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
        TaskError: there is no output of that name, another number of outputs, or a
            label is not finite.
    """
    graph = model if isinstance(model, Graph) else read_graph(model)
    if len(graph.outputs) == 1 and not isinstance(labels, Mapping):
        listed = isinstance(labels, (list, tuple)) and len(labels) == 1
        spread = [labels[0] if listed and np.ndim(labels[0]) else labels]
    elif _is_ordered(labels, graph):
        spread = list(labels)
    else:
        spread = spread_over(labels, graph, "labels")
    arrays = [None if part is None else np.asarray(part) for part in spread]
    for index, array in enumerate(arrays):
        if array is not None and not _is_finite(array):
            raise TaskError(
                "Labels must be finite. Received: NaN or infinity for output "
                f"{output_names(graph)[index]!r}. Leave those examples out, or repair "
                "them."
            )
    return arrays


def _is_finite(labels: np.ndarray) -> bool:
    return labels.dtype.kind != "f" or bool(np.isfinite(labels).all())


def check_finite(outputs: Mapping[str, Any], whose: str = "the model") -> None:
    """Refuses outputs of which NaN would decide: it compares as no, and as 0.

    Args:
        outputs: name -> output [B, ...].
        whose: what computed them, for the message.

    Raises:
        TaskError: an output is NaN or infinite; it is named, and in how many images.
    """
    for name, values in outputs.items():
        rows = np.asarray(values).reshape(len(values), -1)
        wrong = int(np.sum(~np.isfinite(rows).all(axis=1)))
        if wrong:
            raise TaskError(
                "Outputs must be finite to be measured. Received: NaN or infinity in "
                f"output {name!r} of {whose}, for {wrong} of {len(rows)} images. Check "
                "the images and the model's weights; where training diverged, lower "
                "its learning rate."
            )


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


def spread_over(given: Any, graph: Graph, what: str, all_of: Any = ()) -> list[Any]:
    """Returns one value per output, from a dict by name, a list, or one for all.

    Args:
        given: the dict, list or value.
        graph: the graph of the model.
        what: name of the value in errors.
        all_of: types of a value that stands for all outputs.

    Raises:
        TaskError: a name is unknown, or their number is not that of the outputs.
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
