"""Quantized layers with several bit-widths at once, weighted by learned importances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.bits import LayerPair
from gmpq_tf.layers.quantized import QUANT_LAYERS, Quantized
from gmpq_tf.layers.relaxation import ALONE, DEFAULT_RELAXATION, relaxation_of
from gmpq_tf.layers.relaxation_row import Grids, Relaxation
from gmpq_tf.quantizers.draws import add_draws
from gmpq_tf.quantizers.grid import code_limit

# id of a `BranchImportance` -> its weights in the pass that is being computed.
_known: ContextVar[Mapping[int, tf.Tensor]] = ContextVar("weights", default={})  # noqa: B039


@contextmanager
def knowing_weights(weights: Mapping[int, tf.Tensor]) -> Iterator[None]:
    """Gives branches their weights in passes inside the block: nothing is computed.

    Args:
        weights: id of a `BranchImportance` -> `weights_now` of it, [branches].
    """
    token = _known.set(weights)
    try:
        yield
    finally:
        _known.reset(token)


class BranchImportance(keras.layers.Layer):
    """Owns the importances of the branches of one tensor (a kernel or an input).

    It is a layer of its own, because stock convolutions save only kernel and bias.

    Args:
        grids: bit-widths of the branches; with a single one nothing is trained.
        name: name of this layer.
        relaxation: how the owner computes with the branches.
    """

    def __init__(self, grids: Grids, name: str, relaxation: Relaxation) -> None:
        super().__init__(name=name)
        branches = len(grids.bits)
        self.grids, self.relaxation = grids, relaxation if branches > 1 else ALONE
        started = self.relaxation.started(grids)
        self.importance = self.add_weight(
            name="importance",
            shape=started.shape,
            initializer=lambda shape, dtype=None: tf.constant(started, dtype),
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
        # The seed, and how often noise was drawn. Saved with the weights, so that a
        # resumed search draws the same noise as an uninterrupted one.
        self.draws = None
        if self.relaxation.noise is not None:
            self.draws = add_draws(self, "int64", 2**31)
        self.built = True

    @property
    def bits(self) -> tuple[int, ...]:
        """Bit-width of each branch, ascending."""
        return self.grids.bits

    def probabilities(self) -> tf.Tensor:
        """Probabilities of the branches, [branches], with the sum 1.

        For "mixture" `pi = softmax(importance / temperature)` (eq. 5).
        """
        return self.relaxation.distribute(self.logits(), self.grids)

    def choose(self, branch: int) -> None:
        """Sets the importances so that one branch has the weight 1, exactly."""
        alone = self.relaxation.alone(np.asarray(self.importance), self.grids, branch)
        self.importance.assign(alone)

    def set_mean(self, bits: float) -> None:
        """Sets the importances so that the mean is `bits`, at the temperature 1."""
        if len(self.bits) > 1:
            self.importance.assign(self.relaxation.at(self.grids, bits))

    def weights_now(self, training: bool | None = None) -> tf.Tensor:
        """Weights of the branches in one pass, [branches], from the relaxation.

        Args:
            training: whether noise is drawn, if the relaxation uses any.
        """
        known = _known.get().get(id(self))
        if known is not None:
            return known
        noise = None
        draw = self.relaxation.noise
        if training and draw is not None:
            assert self.draws is not None
            seed = tf.convert_to_tensor(self.draws)
            noise = draw(seed, self.importance.shape)
            with tf.control_dependencies([noise]):
                self.draws.assign(seed + tf.constant([0, 1], seed.dtype))
            if self.relaxation.tempered:
                noise /= tf.convert_to_tensor(self.temperature)
        return self.relaxation.weigh(self.logits(), self.grids, noise)

    def logits(self) -> tf.Tensor:
        """`importance / temperature`, of the shape that the relaxation defines."""
        importance = tf.convert_to_tensor(self.importance)
        return importance / tf.convert_to_tensor(self.temperature)


class Mixed(Quantized):
    """What the search adds to a quantized layer.

    `z = conv(sum_j pi_a[j] q_j(x), sum_i pi_w[i] q_i(W))` (eq. 5) with
    `pi = softmax(importance)`: one convolution whatever the number of branches
    ("compositional convolution", Cai and Vasconcelos, CVPR 2020). Unlike the paper the
    softmax has a temperature, 1 unless `TemperatureScheduler` lowers it.

    Args:
        relaxation: a name in `RELAXATIONS`; "mixture" is eq. 5.
    """

    def __init__(
        self, *args: Any, relaxation: str = DEFAULT_RELAXATION, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.relaxation = relaxation
        self._row = relaxation_of(relaxation)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Builds the quantized layer, then the importances of its kernel and input."""
        super().build(input_shape)
        of_w, signed = self.kernel_quantizer, self.input_quantizer.signed
        weights = tuple(map(of_w.largest_code, range(len(of_w.bits))))
        inputs = tuple(code_limit(b, bool(signed)) for b in self.activation_bits)
        self.kernel_branches, self.input_branches = (
            BranchImportance(Grids(bits, codes), name, self._row)
            for bits, codes, name in (
                (self.weight_bits, weights, "kernel_branches"),
                (self.activation_bits, inputs, "input_branches"),
            )
        )

    @property
    def kernel_importance(self) -> keras.Variable:
        """Importances of the kernel's branches; [branches] for "mixture"."""
        return self.kernel_branches.importance

    @property
    def input_importance(self) -> keras.Variable:
        """Importances of the input's branches; [branches] for "mixture"."""
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

    def branch_weights(self, training: bool | None = None) -> LayerPair:
        """Weights of the branches in one pass, [branches] each; see `weights_now`."""
        return LayerPair(
            weights=self.kernel_branches.weights_now(training),
            activations=self.input_branches.weights_now(training),
        )

    def get_config(self) -> dict:
        config = super().get_config()
        if self.relaxation != DEFAULT_RELAXATION:
            config["relaxation"] = self.relaxation
        return config

    def expected_bits(self) -> LayerPair:
        """`sum_i pi_w[i] b_i` and `sum_j pi_a[j] b_j` (eq. 7), scalars, in bits."""
        pi = self.branch_probabilities()
        return LayerPair(
            weights=expected(self.weight_bits, pi.weights),
            activations=expected(self.activation_bits, pi.activations),
        )


def expected(bits: Sequence[int], probabilities: tf.Tensor) -> tf.Tensor:
    """`sum_i pi_i b_i`, a scalar, in bits; `probabilities` are [branches]."""
    return tf.reduce_sum(probabilities * tf.constant(bits, tf.float32))


def _mixed(quantized: Any) -> Any:
    """Makes the Mixed class of a quantized class: `MixedConv2D` from `QuantConv2D`."""
    kind = quantized.searchable_kind
    text = f"{kind} of eq. 5; quantizers hold the candidate bit-widths."
    body = {"__doc__": text, "__module__": __name__}
    cls = type(f"Mixed{kind}", (Mixed, quantized), body)
    return keras.saving.register_keras_serializable("gmpq_tf")(cls)


MIXED_LAYERS: dict[str, Any] = {
    kind: _mixed(quantized) for kind, quantized in QUANT_LAYERS.items()
}
