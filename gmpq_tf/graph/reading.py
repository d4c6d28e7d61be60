"""Reads the graph of a Keras model from its private graph attributes."""

from __future__ import annotations

from typing import Any

from gmpq_tf.graph.calls import Call, Graph, GraphError, Ref, free_name
from gmpq_tf.graph.recognition import LIBRARIES
from gmpq_tf.graph.separable import split_separable
from gmpq_tf.inputs import InputError, check_names, match_inputs


def read_graph(model: Any) -> Graph:
    """Reads a functional or Sequential Keras model; nested ones are inlined.

    Args:
        model: a built functional (or Sequential) `keras.Model`.

    Returns:
        A `Graph`. Layers keep their names; if two nested models have layers of the same
        name, the name of the nested model is put in front. A separable convolution is
        read as two, `<name>_depthwise` and `<name>_pointwise`.

    Raises:
        GraphError: the model is subclassed or not built.
    """
    functional = functional_of(model)
    if functional is None:
        own = ", whose own call() is not in its graph" if has_own_call(model) else ""
        raise GraphError(
            "The model must be a built functional or Sequential Keras model, because "
            "its graph is rewritten layer by layer. "
            f"Received: model={_described(model)}{own}. "
            "Write it as keras.Model(inputs, outputs), or call a Sequential once on "
            "data to build it."
        )
    graph = Graph()
    names = _unique_names(functional)
    tensors = {id(t): graph.new_tensor(t.shape, t.dtype) for t in functional.inputs}
    graph.inputs = [tensors[id(t)] for t in functional.inputs]
    _read_calls(functional, tensors, graph, names)
    graph.outputs = [tensors[id(t)] for t in functional.outputs]
    _leave_out_unread(graph)
    split_separable(graph)
    graph.input_names = [t.name for t in functional.inputs]
    graph.output_names = list(getattr(functional, "output_names", ()))
    refs = {id_: Ref(index) for id_, index in tensors.items()}
    graph.input_structure = _to_refs(functional._inputs_struct, refs)
    graph.output_structure = _to_refs(functional._outputs_struct, refs)
    return graph


def functional_of(model: Any) -> Any:
    """The Keras object that holds a model's graph; None if there is none.

    A class whose `call` somebody wrote may compute something else than its graph.
    """
    if has_own_call(model):
        return None
    if "Sequential" in [cls.__name__ for cls in type(model).__mro__]:
        model = getattr(model, "_functional", None)
    return model if hasattr(model, "_nodes_by_depth") else None


def has_own_call(model: Any) -> bool:
    """Whether the `call` of a model with a graph is not that of a library."""
    classes = [cls for cls in type(model).__mro__ if "call" in vars(cls)]
    ours = not classes or classes[0].__module__.split(".")[0] in LIBRARIES
    return not ours and (
        hasattr(model, "_nodes_by_depth") or hasattr(model, "_functional")
    )


def _described(model: Any) -> str:
    name = getattr(model, "name", None)
    if name is None:
        return f"{model!r:.80}"
    return f"{type(model).__name__} (name={name!r})"


def _leave_out_unread(graph: Graph) -> None:
    """Drops calls on which no output depends.

    Keras leaves them out of a model, but not those in a nested model of whose outputs
    only some are read.
    """
    read, kept = {*graph.outputs}, []
    for call in reversed(graph.calls):
        if read.intersection(call.outputs):
            read.update(call.inputs)
            kept.append(call)
    graph.calls = kept[::-1]


def _read_calls(
    functional: Any,
    tensors: dict,
    graph: Graph,
    names: dict,
    training: bool | None = None,
) -> None:
    """Reads a model's calls; `training` is the argument of a nested model's call."""
    depths = functional._nodes_by_depth
    for depth in sorted(depths, reverse=True):
        for node in depths[depth]:
            if not node.is_input:
                _read_node(node, tensors, graph, names, training)


def _read_node(
    node: Any, tensors: dict, graph: Graph, names: dict, training: bool | None
) -> None:
    sources = [tensors[id(t)] for t in node.input_tensors]
    nested = functional_of(node.operation)
    if nested is not None:
        if training is None:
            training = node.arguments.kwargs.get("training")
        pairs = _nested_inputs(node, nested)
        inner = {id(inside): tensors[id(outside)] for inside, outside in pairs}
        _read_calls(nested, inner, graph, names, training)
        targets = [inner[id(t)] for t in nested.outputs]
        tensors.update({id(t): i for t, i in zip(node.outputs, targets, strict=True)})
        return
    for tensor in node.outputs:
        tensors[id(tensor)] = graph.new_tensor(tensor.shape, tensor.dtype)
    refs = {id(t): Ref(tensors[id(t)]) for t in node.input_tensors}
    args, kwargs = node.arguments.fill_in(refs)
    if training is not None and getattr(
        node.operation, "_call_has_training_arg", False
    ):
        kwargs = {**kwargs, "training": training}  # as Keras passes it on
    outputs = tuple(tensors[id(t)] for t in node.outputs)
    name = names[id(node.operation)]
    graph.calls.append(
        Call(node.operation, name, args, kwargs, tuple(sources), outputs)
    )


def _nested_inputs(node: Any, nested: Any) -> list[tuple[Any, Any]]:
    """(input of a nested model, tensor given for it); dicts are matched by name."""
    structure, arguments = nested._inputs_struct, node.arguments
    given = [*arguments.args, arguments.kwargs.get("inputs")][0]
    try:
        if isinstance(structure, dict) and isinstance(given, dict):
            # With additional names Keras would take the first ones in alphabetical
            # order.
            check_names(given, structure)
        return match_inputs(structure, given, nested.inputs, lambda t: t.name)
    except InputError as error:
        raise GraphError(
            f"A nested model must be given its inputs. Received: {nested.name!r}: "
            f"{error}"
        ) from error


def _unique_names(functional: Any) -> dict[int, str]:
    """Id of each layer -> its name, prefixed with its model's name if names clash."""
    names: dict[int, str] = {}
    taken: set[str] = set()

    def visit(model: Any, prefix: str) -> None:
        for operation in model.operations:
            nested = functional_of(operation)
            if nested is not None:
                visit(nested, operation.name)
            elif id(operation) not in names:
                name = operation.name
                if name in taken:
                    name = f"{prefix}_{name}"
                names[id(operation)] = free_name(name, taken)
                taken.add(names[id(operation)])

    visit(functional, functional.name)
    return names


def _to_refs(structure: Any, refs: dict[int, Ref]) -> Any:
    if id(structure) in refs:
        return refs[id(structure)]
    if isinstance(structure, dict):
        return {key: _to_refs(value, refs) for key, value in structure.items()}
    if len(structure) == 1:  # Keras would warn at every call with the bare tensor
        return _to_refs(structure[0], refs)
    return type(structure)(_to_refs(item, refs) for item in structure)
