"""A model as data: calls of layers on numbered tensors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from gmpq_tf.graph.recognition import activation_name, is_stock, layer_kind
from gmpq_tf.layer_kinds import Kind, Role, kind_of


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


def is_identity(call: Call) -> bool:
    """Whether a call changes nothing in inference: Dropout, augmentation, noise.

    Also if it is called with `training=True`, which a functional model overrules. A
    cast to floats counts as identity, since everything is computed in float32.
    """
    if is_stock(call.layer) and call.kind == "Cast":
        return "float" in str(call.layer.dtype)
    return call.role is Role.IDENTITY and is_described(call)


def is_described(call: Call) -> bool:
    """Whether `KINDS` describes what a call does.

    True for layers of Keras and of this package, and for a user's own layer that has a
    row under its full name, with the module. A user's class that only has the name of a
    Keras class may do anything.
    """
    module = type(call.layer).__module__.split(".")[0]
    return is_stock(call.layer) or module == "gmpq_tf" or "." in call.kind


def is_frozen_norm(call: Call) -> bool:
    """True for a BatchNormalization whose statistics training must not change.

    Either it is not trainable (by itself or through its model), or it is called with
    `training=False`, which `fit` of Keras 3 overrules.
    """
    if call.role is not Role.NORM:
        return False
    return call.kwargs.get("training") is False or not call.layer.trainable
