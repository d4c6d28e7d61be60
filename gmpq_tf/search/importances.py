"""The branch importances of a hypernet, read as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from gmpq_tf.bits import LayerPair
from gmpq_tf.search.divergence import check_temperature


class Importances:
    """A view of the searched layers of a hypernet; the layers own the variables.

    Args:
        hypernet: from `build_hypernet`.
        names: of its searched layers, in graph order.
    """

    def __init__(self, hypernet: keras.Model, names: Iterable[str]) -> None:
        # In a tuple of an object that Keras does not track: layers are saved once.
        self.layers: tuple[Any, ...] = tuple(hypernet.get_layer(n) for n in names)

    @property
    def variables(self) -> list[keras.Variable]:
        """Those that are trained, the kernel's before the input's, [branches] each."""
        return [
            variable
            for layer in self.layers
            for variable in (layer.kernel_importance, layer.input_importance)
            if variable.trainable
        ]

    def expected_bits(self) -> list[LayerPair]:
        """Expected bits of each layer, scalars (eq. 7)."""
        return [layer.expected_bits() for layer in self.layers]

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
        """Set the temperature of every layer's branch probabilities, >= 1e-6."""
        check_temperature(value)
        for layer in self.layers:
            layer.kernel_branches.temperature.assign(value)
            layer.input_branches.temperature.assign(value)

    def to_json(self) -> dict[str, Any]:
        """Candidate bits and branch probabilities of each layer, as plain JSON."""
        return {"layers": {layer.name: _described(layer) for layer in self.layers}}


def _described(layer: Any) -> dict[str, Any]:
    probabilities = layer.branch_probabilities()
    return {
        "weight_bits": list(layer.weight_bits),
        "weight_probabilities": np.asarray(probabilities.weights).tolist(),
        "activation_bits": list(layer.activation_bits),
        "activation_probabilities": np.asarray(probabilities.activations).tolist(),
    }
