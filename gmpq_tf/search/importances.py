"""A common view of all branch importances of a hypernet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.bits import LayerPair
from gmpq_tf.layers.channel_gates import ChannelGates
from gmpq_tf.layers.relaxation_row import probabilities
from gmpq_tf.search.divergence import check_temperature

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
        number of branches and the same relaxation are stacked and computed at once: a
        step needs this three times, and a graph for each side would take longer to
        trace and to optimize.
        """
        sides = [
            side
            for each in self.layers
            for side in (each.kernel_branches, each.input_branches)
        ]
        groups: dict[Any, list[Any]] = defaultdict(list)
        for side in sides:
            groups[side.relaxation.distribute, len(side.bits)].append(side)
        found: dict[int, tf.Tensor] = {}
        for (distribute, _), group in groups.items():
            if distribute is probabilities:  # a softmax of each row needs no grids
                pi = distribute(logits_of(group), group[0].grids)
            else:
                pi = tf.stack([side.probabilities() for side in group])
            rows = tf.unstack(function(pi, [side.bits for side in group]), len(group))
            found |= {id(side): row for side, row in zip(group, rows, strict=True)}
        values = [found[id(side)] for side in sides]
        pairs = zip(values[::2], values[1::2], strict=True)
        return [LayerPair(*pair) for pair in pairs]

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
