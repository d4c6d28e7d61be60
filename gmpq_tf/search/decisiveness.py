"""The Prob-1 regularizer: it drives each tensor to a single branch."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from gmpq_tf.search.importances import Importances
from gmpq_tf.search.risks import Risk, Step

LATE = 0.5  # share of the epochs after which it sets in


class Decisiveness(Risk):
    """`sum_l prod_i (1 - pi_li)`: 0 where every tensor has one branch left (BP-NAS).

    Its weight rises linearly over the second half of the epochs.

    Args:
        branches: the importances.
        strength: weight in the last epoch.
        add_weight: makes the variable of the ramp, as `keras.Model.add_weight`.

    Source: Yu et al., "Search What You Want: Barrier Penalty NAS for Mixed Precision
    Quantization", ECCV 2020. Unlike the paper weights and activations of a layer have
    separate probabilities, not one for each pair.
    """

    name = "prob1"

    def __init__(
        self,
        branches: Importances,
        strength: float,
        add_weight: Callable[..., keras.Variable],
    ) -> None:
        self.branches, self.strength = branches, strength
        self.ramp = add_weight(
            name="prob1_ramp", shape=(), initializer="ones", trainable=False
        )

    def weight(self, step: Step) -> tf.Tensor:
        """The weight of this epoch, strength times ramp, a scalar."""
        return self.strength * tf.convert_to_tensor(self.ramp)

    def value(self, step: Step) -> tf.Tensor:
        """The sum over the tensors that have a choice, a scalar."""
        terms = [
            tf.reduce_prod(1 - side)
            for pair in self.branches.branch_probabilities()
            for side in pair
            if side.shape[0] > 1
        ]
        return tf.add_n(terms) if terms else tf.constant(0.0)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Sets the ramp, 0 in the first half of the epochs and 1 in the last one."""
        share = (epoch + 1) / epochs
        self.ramp.assign(max(0.0, (share - LATE) / (1 - LATE)))
