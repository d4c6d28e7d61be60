"""Reads the graph of a functional Keras model, with nested models inlined.

Tensors are numbered, and each use of a layer is a `Call`. The module reads private
graph attributes of Keras, but imports neither TensorFlow nor Keras, so that costs and
policies can be computed without them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from gmpq_tf.inputs import InputError, check_names, match_inputs
from gmpq_tf.kernel_kinds import KERNEL_KINDS, SEPARABLE_KINDS
from gmpq_tf.layer_kinds import ACTIVATION, KINDS, Kind, Role, kind_of, names

SEARCHABLE_KINDS = tuple(k.name for k in KINDS.values() if k.role is Role.KERNEL)
IDENTITY_KINDS = names(Role.IDENTITY)  # layers that change nothing in inference
# Packages whose classes and functions can be identified by their names.
LIBRARIES = "gmpq_tf keras tf_keras tensorflow tensorflow_model_optimization".split()
# Other names of activations, in Keras and in TensorFlow.
ACTIVATION_NAMES = {
    "swish": "silu",
    "hard_swish": "hard_silu",
    "softmax_v2": "softmax",
    "identity": "linear",
}


class GraphError(ValueError):
    """The model's graph cannot be read: it is subclassed or not built."""


@dataclass(frozen=True)
class Ref:
    """Stands for tensor number `index` of a `Graph` inside a call's arguments."""

    index: int


@dataclass(frozen=True, eq=False)
class Call:
    """One use of one layer: `layer(*args, **kwargs)`, with a `Ref` for each tensor.

    Args:
        layer: the layer or Keras operation.
        name: its name in the graph.
        args: positional arguments.
        kwargs: keyword arguments.
        inputs: numbers of the tensors among the arguments.
        outputs: numbers of the results.
        split: whether its activation has become a call of its own.
    """

    layer: Any
    name: str
    args: tuple
    kwargs: dict
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    split: bool = False

    @property
    def activation(self) -> str:
        """Name of the activation inside the layer, "linear" if there is none."""
        if self.split:
            return "linear"
        return activation_name(getattr(self.layer, "activation", None))

    @property
    def kind(self) -> str:
        """Class name of the layer, e.g. `"Add"`."""
        return layer_kind(self.layer)

    @property
    def row(self) -> Kind:
        """The layer's row in `KINDS`."""
        row = kind_of(self.kind)
        return kind_of(row.variant(self.layer) or row.name)

    @property
    def role(self) -> Role:
        """The layer's role in quantization."""
        return self.row.role


@dataclass(frozen=True, eq=False)
class KernelPart:
    """One of the two convolutions inside a separable one, as a layer of its own.

    Args:
        source: the separable layer.
        searchable_kind: stock Keras class that computes this part.
        kernel: the source's kernel variable, in the layout of that class.
        bias: the source's bias variable, or None.
        activation: activation function, or None.
        config: configuration of that class.
    """

    source: Any
    searchable_kind: str
    kernel: Any
    bias: Any
    activation: Any
    config: dict

    @property
    def use_bias(self) -> bool:
        """Whether this part adds a bias."""
        return self.bias is not None

    @property
    def weights(self) -> list:
        """The kernel variable, and the bias variable if there is one."""
        return [self.kernel] if self.bias is None else [self.kernel, self.bias]

    def get_config(self) -> dict:
        """Configuration of the stock layer that computes this part."""
        return dict(self.config)


@dataclass
class Graph:
    """A model as calls on numbered tensors.

    Args:
        calls: calls in topological order.
        inputs: numbers of the model's inputs.
        outputs: numbers of the model's outputs.
        shapes: shape of each tensor, with None for open sizes.
        dtypes: type of each tensor.
        input_names: names of the inputs.
        input_structure: inputs in the model's nested structure, as `Ref`.
        output_structure: outputs in the model's nested structure, as `Ref`.
        output_names: names of the outputs.
    """

    calls: list[Call] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    shapes: list[tuple] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    input_names: list[str] = field(default_factory=list)
    input_structure: Any = None
    output_structure: Any = None
    output_names: list[str] = field(default_factory=list)

    def consumers(self) -> dict[int, list[Call]]:
        """Tensor number -> calls that read it (twice, if they read it twice)."""
        users: dict[int, list[Call]] = {i: [] for i in range(len(self.shapes))}
        for call in self.calls:
            for index in call.inputs:
                users[index].append(call)
        return users

    def producers(self) -> dict[int, Call]:
        """Tensor number -> the call that makes it; model inputs are absent."""
        return {index: call for call in self.calls for index in call.outputs}

    def new_tensor(self, shape: tuple, dtype: str) -> int:
        """Adds a tensor; returns its number."""
        self.shapes.append(tuple(shape))
        self.dtypes.append(str(dtype))
        return len(self.shapes) - 1


def fill(structure: Any, tensors: Any) -> Any:
    """Replaces every `Ref` in nested lists, tuples, dicts by `tensors[ref.index]`."""
    if isinstance(structure, Ref):
        return tensors[structure.index]
    if isinstance(structure, (list, tuple)):
        return type(structure)(fill(item, tensors) for item in structure)
    if isinstance(structure, dict):
        return {key: fill(value, tensors) for key, value in structure.items()}
    return structure


def infer(call: Call, tensors: Any) -> Any:
    """The result of one call in inference, computed from tensors of its graph.

    Args:
        call: the call. Its argument `training` is overruled, as in a whole model; some
            layers record their default there.
        tensors: tensor number -> value.
    """
    kwargs = fill(call.kwargs, tensors)
    if "training" in kwargs:
        kwargs["training"] = False
    return call.layer(*fill(call.args, tensors), **kwargs)


def unary_call(layer: Any, name: str, source: int, target: int) -> Call:
    """A call of a layer with one input and one output tensor."""
    return Call(layer, name, (Ref(source),), {}, (source,), (target,))


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or if it is taken the first free of `name_1`, `name_2`, ..."""
    numbered = (f"{name}_{i}" for i in range(1, len(taken) + 2))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def layer_kind(layer: Any) -> str:
    """Kind of a layer: the class it declares to behave as, else its own class name.

    For a user's own class it is the name with its module, because a class with the name
    of a Keras class may do something else.
    """
    kinds = (getattr(layer, name, None) for name in ("searchable_kind", "graph_kind"))
    cls = type(layer)
    known = is_stock(layer) or cls.__module__.split(".")[0] in LIBRARIES
    own = cls.__name__ if known else f"{cls.__module__}.{cls.__name__}"
    return next(filter(None, kinds), own)


def activation_name(activation: Any) -> str:
    """Name of an activation, the same for a function, a layer and their synonyms.

    Args:
        activation: a function, a layer, or None; of Keras or TensorFlow.

    Returns:
        Such as "relu", "relu6" or "linear". For a user's own function its name with the
        module; for a layer with other settings than the function, its class name.
    """
    if activation is None:
        return "linear"
    if not hasattr(activation, "__name__"):
        return _name_of_activation_layer(activation)
    name, module = activation.__name__, getattr(activation, "__module__", None) or ""
    if module.split(".")[0] not in LIBRARIES:
        return f"{module}.{name}"
    return ACTIVATION_NAMES.get(name, name)


def _name_of_activation_layer(layer: Any) -> str:
    kind = layer_kind(layer)
    if kind == ACTIVATION:
        return activation_name(layer.activation)
    if kind == "ReLU":
        names = {None: "relu", 6.0: "relu6"}
        return names.get(relu_cap(layer), kind) if is_plain_relu(layer) else kind
    return "softmax" if kind == "Softmax" and layer.axis == -1 else kind


def is_over_last_axis(layer: Any, rank: int) -> bool:
    """Whether a softmax of tensors of a rank normalizes along their last axis."""
    axis = getattr(layer, "axis", -1)
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    return axes in ([-1], [rank - 1])


def is_plain_relu(layer: Any) -> bool:
    """Whether a ReLU layer has neither a slope below zero nor a threshold."""
    return not layer.negative_slope and not layer.threshold


def relu_cap(layer: Any) -> float | None:
    """The largest value of a ReLU layer; None: it has none."""
    return None if layer.max_value is None else float(layer.max_value)


def is_identity(call: Call) -> bool:
    """Whether a call changes nothing in inference: Dropout, augmentation, noise.

    Also if it is called with `training=True`, which a functional model overrules. A
    cast to floats counts as identity, since everything is computed in float32.
    """
    if is_stock(call.layer) and call.kind == "Cast":
        return "float" in str(call.layer.dtype)
    return call.role is Role.IDENTITY and is_described(call)


def is_described(call: Call) -> bool:
    """Whether the row of a call's kind can say what it does.

    So it can of layers of Keras and of ours, and of somebody's own where the row has
    the name of their class with its module's: one that is called as a class of Keras
    may do anything.
    """
    module = type(call.layer).__module__.split(".")[0]
    return is_stock(call.layer) or module == "gmpq_tf" or "." in call.kind


def is_searchable(layer: Any) -> bool:
    """True for the layers of `KERNEL_KINDS`, whose bits are searched."""
    if getattr(layer, "searchable_kind", None):
        return True
    return is_stock(layer) and type(layer).__name__ in SEARCHABLE_KINDS


def is_stock(layer: Any) -> bool:
    """True for layers and operations of Keras itself, known by their class."""
    return type(layer).__module__.split(".")[0] in ("keras", "tf_keras")


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
    _split_separable(graph)
    graph.input_names = [t.name for t in functional.inputs]
    graph.output_names = list(getattr(functional, "output_names", ()))
    refs = {id_: Ref(index) for id_, index in tensors.items()}
    graph.input_structure = _to_refs(functional._inputs_struct, refs)
    graph.output_structure = _to_refs(functional._outputs_struct, refs)
    return graph


def check_float(model: Any) -> None:
    """Refuses a model that has been quantized, or that adds LoRA's kernels to its own.

    Args:
        model: a built functional model.

    Raises:
        GraphError: it is not functional, or has quantizers or LoRA weights.
    """
    for call in read_graph(model).calls:
        ours = call.role is Role.QUANTIZER or hasattr(call.layer, "kernel_quantizer")
        if ours or getattr(call.layer, "quantization_mode", None):  # Keras's own
            raise GraphError(
                "The model must be the float one. "
                f"Received: model={model.name!r}, whose layer {call.name!r} is "
                "quantized already. Pass the model that it was made of."
            )
        if getattr(call.layer, "lora_enabled", False):
            raise GraphError(
                "Each layer must have one kernel. "
                f"Received: model={model.name!r}, whose layer {call.name!r} adds "
                "LoRA's. save_weights() merges them: load its file into the model "
                "without LoRA."
            )


def searchable_layers(model: Any) -> list:
    """The layers whose bits are searched, in graph order, once each."""
    return list(_searchable_calls(model).values())


def searchable_names(model: Any) -> list[str]:
    """Names of the searchable layers, in graph order: the keys of a policy."""
    return list(_searchable_calls(model))


def is_frozen_norm(call: Call) -> bool:
    """True for a BatchNormalization whose statistics training must not change.

    Either it is not trainable (by itself or through its model), or it is called with
    `training=False`, which `fit` of Keras 3 overrules.
    """
    if call.role is not Role.NORM:
        return False
    return call.kwargs.get("training") is False or not call.layer.trainable


def kernel_size(layer: Any) -> int:
    """Number of kernel weights of a searchable layer."""
    return math.prod(layer.kernel.shape)


def layer_macs(model: Any) -> dict[str, int]:
    """Multiply-adds of one image in each searchable layer, summed over its uses.

    What follows a layer with `examples_per_image` counts as often.

    `macs = positions * kernel weights`. Positions are the pixels of the output, for a
    transposed convolution those of the input; for Dense all axes but batch and the
    last.

    Raises:
        GraphError: an output shape is not fully known.
    """
    graph = read_graph(model)
    macs: dict[str, int] = {}
    times = examples(graph)
    for call in graph.calls:
        if is_searchable(call.layer):
            positions = positions_of(graph, call)
            if None in positions:
                raise GraphError(
                    "Costs need a fixed input size. "
                    f"Received: layer={call.name!r} with output shape "
                    f"{graph.shapes[call.outputs[0]]}. Give the model's Input a shape."
                )
            count = math.prod(positions) * kernel_size(call.layer)
            count *= times[call.outputs[0]]
            macs[call.name] = macs.get(call.name, 0) + count
    return macs


def examples(graph: Graph) -> dict[int, int]:
    """Tensor number -> how many examples of it an image makes.

    One, unless a layer says otherwise: a detector of two stages computes the second for
    each region of an image.
    """
    times = dict.fromkeys(graph.inputs, 1)
    for call in graph.calls:
        before = max((times[index] for index in call.inputs), default=1)
        if call.role is Role.HOST:
            before = getattr(call.layer, "examples_per_image", 1)
        times.update(dict.fromkeys(call.outputs, before))
    return times


def positions_of(graph: Graph, call: Call) -> tuple:
    """Sizes of the axes along which a kernel is applied (no batch, no channels)."""
    places = call.inputs if KERNEL_KINDS[call.kind].of_inputs else call.outputs
    shape = graph.shapes[places[0]]
    if getattr(call.layer, "data_format", None) == "channels_first":
        return shape[2:]
    config = call.layer.config if isinstance(call.layer, KernelPart) else {}
    return shape[2:] if config.get("data_format") == "channels_first" else shape[1:-1]


def _to_refs(structure: Any, refs: dict[int, Ref]) -> Any:
    if id(structure) in refs:
        return refs[id(structure)]
    if isinstance(structure, dict):
        return {key: _to_refs(value, refs) for key, value in structure.items()}
    if len(structure) == 1:  # Keras would warn at every call with the bare tensor
        return _to_refs(structure[0], refs)
    return type(structure)(_to_refs(item, refs) for item in structure)


def _searchable_calls(model: Any) -> dict[str, Any]:
    calls = read_graph(model).calls
    return {call.name: call.layer for call in calls if is_searchable(call.layer)}


def _described(model: Any) -> str:
    name = getattr(model, "name", None)
    if name is None:
        return f"{model!r:.80}"
    return f"{type(model).__name__} (name={name!r})"


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


def _split_separable(graph: Graph) -> None:
    """Replaces each call of a separable convolution by two calls."""
    taken = {call.name for call in graph.calls}
    parts: dict[int, list[tuple[KernelPart, str]]] = {}
    calls = []
    for call in graph.calls:
        if call.kind not in SEPARABLE_KINDS or not is_stock(call.layer):
            calls.append(call)
            continue
        if id(call.layer) not in parts:
            parts[id(call.layer)] = _named_parts(call, taken)
        (depthwise, first), (pointwise, second) = parts[id(call.layer)]
        middle = graph.new_tensor(
            _depthwise_shape(call, graph), graph.dtypes[call.outputs[0]]
        )
        calls.append(unary_call(depthwise, first, call.inputs[0], middle))
        calls.append(unary_call(pointwise, second, middle, call.outputs[0]))
    graph.calls = calls


def _named_parts(call: Call, taken: set[str]) -> list[tuple[KernelPart, str]]:
    named = []
    for part, role in zip(
        separable_parts(call.layer), ("depthwise", "pointwise"), strict=True
    ):
        name = free_name(f"{call.name}_{role}", taken)
        taken.add(name)
        named.append((part, name))
    return named


def _depthwise_shape(call: Call, graph: Graph) -> tuple:
    """Shape of the depthwise part's output."""
    shape = list(graph.shapes[call.outputs[0]])
    axis = -1 if call.layer.data_format == "channels_last" else 1
    channels = graph.shapes[call.inputs[0]][axis]
    shape[axis] = channels * call.layer.depth_multiplier
    return tuple(shape)


def separable_parts(layer: Any) -> tuple[KernelPart, KernelPart]:
    """The depthwise and the pointwise convolution that a separable one computes.

    `pointwise(depthwise(x)) + bias`; Chollet, "Xception", CVPR 2017, section 3.
    """
    config = layer.get_config()
    common = {k: config[k] for k in ("name", "trainable", "dtype", "data_format")}
    same = "kernel_size strides padding dilation_rate depth_multiplier".split()
    roles = ("initializer", "regularizer", "constraint")
    depthwise = {
        **common,
        **{key: config[key] for key in same},
        **{f"depthwise_{role}": config[f"depthwise_{role}"] for role in roles},
        "use_bias": False,
        "activation": "linear",
    }
    kept = ["filters", "activation", "use_bias", "activity_regularizer"]
    kept += [f"bias_{role}" for role in roles]
    pointwise = {
        **common,
        **{key: config[key] for key in kept},
        **{f"kernel_{role}": config[f"pointwise_{role}"] for role in roles},
        "kernel_size": (1,) * len(layer.kernel_size),
    }
    bias = layer.bias if layer.use_bias else None
    kernels = layer.depthwise_kernel, layer.pointwise_kernel
    first, second = SEPARABLE_KINDS[type(layer).__name__]
    return (
        KernelPart(layer, first, kernels[0], None, None, depthwise),
        KernelPart(layer, second, kernels[1], bias, layer.activation, pointwise),
    )


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
