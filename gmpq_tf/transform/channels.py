"""Which channels of a graph belong together, and which of them must stay.

Every index of the last axis of every tensor has a number, its slot. What has the same
slot is pruned together, as one channel: tensors that are added share their slots, and a
kernel makes new ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import (
    Call,
    Graph,
    KernelPart,
    Ref,
    is_identity,
    is_searchable,
    is_stock,
)
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layer_kinds import Role, names

# Activations that compute each value from one value.
_ELEMENTWISE = frozenset(
    "linear relu relu6 sigmoid hard_sigmoid silu hard_silu leaky_relu exponential "
    "softplus tanh elu selu gelu softsign mish celu hard_tanh log_sigmoid".split()
)
# Kinds of layers, beside those of some roles, that leave each channel where it is.
_KEEPING = names(Role.POOL, Role.REPEAT, Role.LOOKUP) | frozenset(
    "ELU UpSampling2D MaxPooling1D MaxPooling2D GlobalMaxPooling1D GlobalMaxPooling2D "
    "ZeroPadding1D ZeroPadding2D Cropping1D Cropping2D".split()
)
OUTPUT = "it makes an output of the model"


@dataclass(frozen=True, eq=False)
class Channels:
    """The slots of a graph's tensors.

    Args:
        slots: for each tensor the slots of its last axis, integers [size of that axis].
        producers: layer with a kernel that makes channels -> slots of its output,
            [channels].
        readers: layer with a kernel -> slots of its input, [channels].
        fixed: slot -> why it cannot be removed.
    """

    slots: tuple[np.ndarray, ...]
    producers: dict[str, np.ndarray]
    readers: dict[str, np.ndarray]
    fixed: dict[int, str]

    def free(self, slots: np.ndarray) -> np.ndarray:
        """Whether each slot may be removed, booleans of the shape of `slots`."""
        return ~np.isin(slots, list(self.fixed))

    def why_fixed(self, name: str) -> str | None:
        """Why a layer cannot lose channels; None: it can."""
        reasons = [self.fixed.get(int(slot)) for slot in self.producers[name]]
        return next(filter(None, reasons), None)


class _Union:
    """Slots that were joined, as a forest of parents (union-find)."""

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.fixed: dict[int, str] = {}

    def new(self, count: int) -> np.ndarray:
        """Adds `count` slots; returns them, [count]."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, slot: int) -> int:
        while self.parents[slot] != slot:
            self.parents[slot] = self.parents[self.parents[slot]]
            slot = self.parents[slot]
        return slot

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Joins slots [n] elementwise; a single slot is joined with all others."""
        if one.size != other.size:
            one, other = np.broadcast_arrays(one, other)
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self.parents[self.root(a)] = self.root(b)

    def fix(self, slots: np.ndarray, why: str) -> None:
        for slot in slots.tolist():
            self.fixed.setdefault(slot, why)


def channels_of(graph: Graph) -> Channels:
    """Reads which channels of a graph belong together.

    Args:
        graph: of a float model, from `read_graph`.
    """
    return _Reader(graph).read()


class _Reader:
    """Finds the slots of all tensors, call by call in graph order."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.union = graph, _Union()
        self.slots: dict[int, np.ndarray] = {}
        self.producers: dict[str, np.ndarray] = {}
        self.readers: dict[str, np.ndarray] = {}
        # Id of a layer with weights -> slots of the input of its first call.
        self.first: dict[int, np.ndarray] = {}

    def read(self) -> Channels:
        """The channels of the whole graph."""
        for index in self.graph.inputs:
            self.slots[index] = self._stays(index, "it is an input of the model")
        for call in self.graph.calls:
            self._read_call(call)
        for index in self.graph.outputs:
            self.union.fix(self.slots[index], OUTPUT)
        roots = np.array([self.union.root(i) for i in range(len(self.union.parents))])
        fixed: dict[int, str] = {}
        for slot, why in self.union.fixed.items():
            fixed.setdefault(int(roots[slot]), why)

        def rooted(found: Any) -> dict:
            return {k: roots[v] if v.size else v for k, v in found.items()}

        slots = rooted(self.slots)
        return Channels(
            tuple(slots[i] for i in range(len(self.graph.shapes))),
            rooted(self.producers),
            rooted(self.readers),
            fixed,
        )

    def _read_call(self, call: Call) -> None:
        sources = [self.slots[index] for index in call.inputs]
        self._check_shared(call, sources)
        found = None
        if len(call.outputs) == 1 and (
            is_stock(call.layer) or isinstance(call.layer, KernelPart)
        ):
            found = self._made(call, sources, call.outputs[0])
        if is_identity(call) and len(sources) == 1 and len(call.outputs) == 1:
            found = sources[0]
        if found is not None and found.size == self._size(call.outputs[0]):
            self.slots[call.outputs[0]] = found
            return
        why = f"{call.name!r} ({call.kind}) reads it, whose channels are not followed"
        for slots in sources:
            self.union.fix(slots, why)
        made = f"{call.name!r} ({call.kind}) makes it, whose channels are not followed"
        for index in call.outputs:
            self.slots[index] = self._stays(index, made)

    def _check_shared(self, call: Call, sources: list[np.ndarray]) -> None:
        """Joins the input slots of all calls of one layer, which share its weights."""
        if getattr(call.layer, "weights", None) and len(sources) == 1:
            before = self.first.setdefault(id(call.layer), sources[0])
            if before.size == sources[0].size:
                self.union.join(before, sources[0])

    def _made(
        self, call: Call, sources: list[np.ndarray], target: int
    ) -> np.ndarray | None:
        """The slots of what a stock layer makes; None: they are not followed."""
        if getattr(call.layer, "data_format", None) == "channels_first":
            return None
        if is_searchable(call.layer):
            return self._of_kernel(call, sources[0])
        if call.role in (Role.SUM, Role.PRODUCT, Role.MEAN):
            return self._of_sum(call, sources, target)
        if call.role is Role.JOIN:
            return self._of_join(call, sources)
        if len(sources) != 1:
            return None
        if call.kind == "Flatten":
            return self._flat(sources[0], target)
        if call.kind == "Reshape":
            same = self._size(target) == sources[0].size
            return sources[0] if same else self._flat(sources[0], target)
        return sources[0] if self._keeps(call) else None

    def _of_kernel(self, call: Call, source: np.ndarray) -> np.ndarray | None:
        layer, kind = call.layer, KERNEL_KINDS[call.kind]
        config = layer.get_config()
        if config.get("data_format") == "channels_first":
            return None
        self.readers[call.name] = source
        if kind.depthwise:
            made: np.ndarray = np.repeat(
                source, layer.kernel.shape[kind.axes.index("m")]
            )
        elif call.name in self.producers:  # used again
            made = self.producers[call.name]
        else:
            made = self.union.new(layer.kernel.shape[kind.axes.index("o")])
            self.producers[call.name] = made
        if config.get("groups", 1) > 1:
            why = f"{call.name!r} convolves it in {config['groups']} groups"
            self.union.fix(source, why)
            self.union.fix(made, why)
        if call.activation not in _ELEMENTWISE:
            self.union.fix(made, f"{call.activation!r} in {call.name!r} mixes channels")
        return made

    def _of_sum(
        self, call: Call, sources: list[np.ndarray], target: int
    ) -> np.ndarray | None:
        """The slots of an elementwise sum or product: those of all its operands."""
        if not all(map(_is_scalar, _constants(call))) or hasattr(call.layer, "axis"):
            return None  # `keras.ops.average` moves axes
        size = self._size(target)
        wide = [slots for slots in sources if slots.size == size]
        if not wide or any(s.size not in (1, size) for s in sources):
            return None
        for other in wide[1:]:
            self.union.join(wide[0], other)
        for single in sources:
            if single.size == 1 < size:  # spread over all channels
                self.union.fix(single, f"{call.name!r} spreads it over all channels")
        return wide[0]

    def _of_join(self, call: Call, sources: list[np.ndarray]) -> np.ndarray | None:
        axis = getattr(call.layer, "axis", None)
        if not isinstance(axis, int):
            return None
        rank = len(self.graph.shapes[call.inputs[0]])
        if axis in (-1, rank - 1):
            return np.concatenate(sources)
        if len({slots.size for slots in sources}) != 1:
            return None
        for other in sources[1:]:
            self.union.join(sources[0], other)
        return sources[0]

    def _flat(self, source: np.ndarray, target: int) -> np.ndarray | None:
        """The slots of a flattened tensor: those of the channels, repeated."""
        size, rank = self._size(target), len(self.graph.shapes[target])
        whole = rank == 2 and source.size and size % source.size == 0
        return np.tile(source, size // source.size) if whole else None

    def _keeps(self, call: Call) -> bool:
        """Whether a layer leaves each channel where it is."""
        if call.role is Role.NORM:
            rank = len(self.graph.shapes[call.inputs[0]])
            return call.layer.axis in (-1, rank - 1, [rank - 1], [-1])
        if call.kind == "Rescaling":
            return all(_is_scalar(v) for v in (call.layer.scale, call.layer.offset))
        if call.role is Role.CURVE:
            return (call.row.function or call.activation) in _ELEMENTWISE
        return call.kind in _KEEPING

    def _size(self, index: int) -> int:
        shape = self.graph.shapes[index]
        return int(shape[-1] or 0) if len(shape) > 1 else 0

    def _stays(self, index: int, why: str) -> np.ndarray:
        slots = self.union.new(self._size(index))
        self.union.fix(slots, why)
        return slots


def _constants(call: Call) -> list[Any]:
    """The arguments of a call that are not tensors of the graph."""
    leaves = keras.tree.flatten([list(call.args), dict(call.kwargs)])
    return [leaf for leaf in leaves if not isinstance(leaf, Ref)]


def _is_scalar(value: Any) -> bool:
    return value is None or np.size(value) == 1
