"""The same layers with several bit-widths at once, weighted by learned importances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.bits import LayerPair
from gmpq_tf.layers.quantized import QUANT_LAYERS, Quantized


class BranchImportance(keras.layers.Layer):
    """Owns the importances of one layer's branches, in a layer of its own.

    Stock convolutions save their kernel and bias only.

    Args:
        branches: number of branches; a single one is not trained.
        name: of the layer.
    """

    def __init__(self, branches: int, name: str) -> None:
        super().__init__(name=name)
        self.importance = self.add_weight(
            name="importance",
            shape=(branches,),
            initializer="zeros",
            trainable=branches > 1,
            autocast=False,
            dtype="float32",
        )
        self.temperature = self.add_weight(
            name="temperature",
            shape=(),
            initializer="ones",
            trainable=False,
            autocast=False,
            dtype="float32",
        )
        self.built = True

    def probabilities(self) -> tf.Tensor:
        """`pi = softmax(importance / temperature)`, [branches]."""
        importance = tf.convert_to_tensor(self.importance)
        return tf.nn.softmax(importance / tf.convert_to_tensor(self.temperature))


class Mixed(Quantized):
    """What the search adds to a quantized layer.

    `z = conv(sum_j pi_a[j] q_j(x), sum_i pi_w[i] q_i(W))` (eq. 5) with
    `pi = softmax(importance)`: one convolution whatever the number of branches
    ("compositional convolution", Cai and Vasconcelos, CVPR 2020). Unlike the paper the
    softmax has a temperature, 1 unless `TemperatureScheduler` lowers it.
    """

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Build the quantized layer, then one importance a branch."""
        super().build(input_shape)
        self.kernel_branches = BranchImportance(
            len(self.weight_bits), "kernel_branches"
        )
        self.input_branches = BranchImportance(
            len(self.activation_bits), "input_branches"
        )

    @property
    def kernel_importance(self) -> keras.Variable:
        """Importances of the kernel's branches, [branches]."""
        return self.kernel_branches.importance

    @property
    def input_importance(self) -> keras.Variable:
        """Importances of the input's branches, [branches]."""
        return self.input_branches.importance

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """Candidate bit-widths of the kernel."""
        return self.kernel_quantizer.bits

    @property
    def activation_bits(self) -> tuple[int, ...]:
        """Candidate bit-widths of the input."""
        return self.input_quantizer.bits

    def branch_probabilities(self) -> LayerPair:
        """`pi_w` and `pi_a`, [branches] each: softmax of the importances."""
        return LayerPair(
            weights=self.kernel_branches.probabilities(),
            activations=self.input_branches.probabilities(),
        )

    def expected_bits(self) -> LayerPair:
        """`sum_i pi_w[i] b_i` and `sum_j pi_a[j] b_j`, scalars, as in eq. 7."""
        pi = self.branch_probabilities()
        return LayerPair(
            weights=expected(self.weight_bits, pi.weights),
            activations=expected(self.activation_bits, pi.activations),
        )


def expected(bits: Sequence[int], probabilities: tf.Tensor) -> tf.Tensor:
    """Mean of bit-widths, a scalar; `probabilities` [branches]."""
    return tf.reduce_sum(probabilities * tf.constant(bits, tf.float32))


def _mixed(quantized: Any) -> Any:
    """The Mixed class of a quantized layer's class: `MixedConv2D` of `QuantConv2D`."""
    kind = quantized.searchable_kind
    text = f"{kind} of eq. 5; quantizers hold the candidate bit-widths."
    body = {"__doc__": text, "__module__": __name__}
    cls = type(f"Mixed{kind}", (Mixed, quantized), body)
    return keras.saving.register_keras_serializable("gmpq_tf")(cls)


MIXED_LAYERS: dict[str, Any] = {
    kind: _mixed(quantized) for kind, quantized in QUANT_LAYERS.items()
}
