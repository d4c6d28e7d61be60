"""A common view of all branch importances of a hypernet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.bits import LayerPair
from gmpq_tf.layers.channel_gates import ChannelGates
from gmpq_tf.layers.mixed import knowing_weights
from gmpq_tf.layers.relaxation import expectation
from gmpq_tf.layers.relaxation_row import probabilities
from gmpq_tf.search.divergence import check_temperature

# id of the first side of a group -> its probabilities, [sides, branches].
_computed: ContextVar[Mapping[int, tf.Tensor]] = ContextVar("computed", default={})  # noqa: B039
DRAWN = ("draws", "seed_generator_state")  # names of the states of random numbers


class Importances:
    """A view of the searched layers of a hypernet; the layers own the variables.

    Args:
        hypernet: from `build_hypernet`.
        names: names of the searched layers, in graph order.
    """

    def __init__(self, hypernet: keras.Model, names: Iterable[str]) -> None:
        # A tuple in an object that Keras does not track, so that the layers are saved
        # only once, with the hypernet.
        self.layers: tuple[Any, ...] = tuple(hypernet.get_layer(n) for n in names)
        found = [each for each in hypernet.layers if isinstance(each, ChannelGates)]
        self.gates: tuple[ChannelGates, ...] = tuple(found)
        # States of all random numbers: of branches, gates, quantizers and Dropout.
        self.draws: tuple[Any, ...] = tuple(
            v for v in hypernet.variables if v.name in DRAWN
        )

    @property
    def variables(self) -> list[keras.Variable]:
        """The trainable importances; of each layer the kernel's, then the input's.

        After them the variables of channel gates, [gates].
        """
        branches = [
            variable
            for layer in self.layers
            for variable in (layer.kernel_importance, layer.input_importance)
            if variable.trainable
        ]
        return branches + [v for gates in self.gates for v in gates.trainable_variables]

    def shares(self) -> list[tf.Tensor] | None:
        """Share of each layer that channel gates leave, scalars; None without gates."""
        if not self.gates:
            return None
        found = self.gates[0].shares()
        return [found.get(layer.name, tf.constant(1.0)) for layer in self.layers]

    def expected_bits(self) -> list[LayerPair]:
        """Expected bits of each layer, scalars (eq. 7)."""
        return self._of_all(
            lambda pi, bits: tf.reduce_sum(pi * tf.constant(bits, pi.dtype), axis=1)
        )

    def branch_probabilities(self) -> list[LayerPair]:
        """`pi_w` and `pi_a` of each layer, tensors [branches]."""
        return self._of_all(lambda pi, bits: pi)

    def _of_all(
        self, function: Callable[[tf.Tensor, list[Sequence[int]]], tf.Tensor]
    ) -> list[LayerPair]:
        """Applies a function of probabilities and bits [rows, branches] to all tensors.

        Each row is one side (weights or activations) of a layer. Sides with the same
        number of branches and the same relaxation are stacked and computed at once.
        """
        found: dict[int, tf.Tensor] = {}
        for group in self._groups():
            pi = _computed.get().get(id(group[0]))
            pi = _probabilities_of(group) if pi is None else pi
            rows = tf.unstack(function(pi, [side.bits for side in group]), len(group))
            found |= {id(side): row for side, row in zip(group, rows, strict=True)}
        values = [found[id(side)] for side in self._sides()]
        pairs = zip(values[::2], values[1::2], strict=True)
        return [LayerPair(*pair) for pair in pairs]

    def _sides(self) -> list[Any]:
        """The `BranchImportance`s, of each layer the kernel's, then the input's."""
        return [
            side
            for each in self.layers
            for side in (each.kernel_branches, each.input_branches)
        ]

    def _groups(self) -> list[list[Any]]:
        """Sides whose probabilities can be stacked and computed at once."""
        groups: dict[Any, list[Any]] = defaultdict(list)
        for side in self._sides():
            groups[side.relaxation.distribute, len(side.bits)].append(side)
        return list(groups.values())

    @contextmanager
    def together(self) -> Iterator[None]:
        """Computes the probabilities of all branches once for all of the block.

        Layers and costs inside the block share them: a graph for each side takes longer
        to trace and to optimize than the step itself. The block is a pass of a training
        step: in it importances do not change, and the same gradient tapes watch them.
        """
        computed = {id(group[0]): _probabilities_of(group) for group in self._groups()}
        weights = {
            id(side): row
            for group in self._groups()
            for side, row in zip(
                group, tf.unstack(computed[id(group[0])], len(group)), strict=True
            )
            if side.relaxation.weigh is expectation
        }
        token = _computed.set(computed)
        try:
            with knowing_weights(weights):
                yield
        finally:
            _computed.reset(token)

    def probabilities(self) -> dict[str, LayerPair]:
        """Layer name -> `pi_w` and `pi_a`, arrays [branches]."""
        return {
            layer.name: LayerPair(*map(np.asarray, layer.branch_probabilities()))
            for layer in self.layers
        }

    @property
    def temperature(self) -> float:
        """Temperature of the branch probabilities; 1 is the paper's softmax."""
        return float(np.asarray(self.layers[0].kernel_branches.temperature))

    def set_temperature(self, value: float) -> None:
        """Sets the temperature of every layer's branch probabilities, >= 1e-6."""
        check_temperature(value)
        for layer in self.layers:
            layer.kernel_branches.temperature.assign(value)
            layer.input_branches.temperature.assign(value)

    def to_json(self) -> dict[str, Any]:
        """Candidate bits and branch probabilities of each layer, as plain JSON."""
        return {"layers": {layer.name: _described(layer) for layer in self.layers}}


def _probabilities_of(sides: Sequence[Any]) -> tf.Tensor:
    """Probabilities of the branches of a group, [sides, branches]."""
    distribute = sides[0].relaxation.distribute
    if distribute is probabilities:  # a softmax of each row needs no grids
        return distribute(logits_of(sides), sides[0].grids)
    return tf.stack([side.probabilities() for side in sides])


def logits_of(sides: Sequence[Any]) -> tf.Tensor:
    """`logits` of several `BranchImportance`s, [sides, branches], in one division."""
    importances = [tf.convert_to_tensor(side.importance) for side in sides]
    temperatures = [tf.convert_to_tensor(side.temperature) for side in sides]
    return tf.stack(importances) / tf.stack(temperatures)[:, None]


def _described(layer: Any) -> dict[str, Any]:
    probabilities = layer.branch_probabilities()
    return {
        "weight_bits": list(layer.weight_bits),
        "weight_probabilities": np.asarray(probabilities.weights).tolist(),
        "activation_bits": list(layer.activation_bits),
        "activation_probabilities": np.asarray(probabilities.activations).tolist(),
    }
