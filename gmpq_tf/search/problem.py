"""What a search looks for: the bits of a model's layers, within a budget."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.budget import FULL_PRECISION_BITS, Candidates, bit_ops, resolve_budget
from gmpq_tf.float_layers import float_bit_ops
from gmpq_tf.graph import GraphError, layer_macs
from gmpq_tf.search.knapsack import most_probable_bits
from gmpq_tf.space import SearchSpace


@dataclass(frozen=True)
class SearchProblem:
    """Candidates, costs and budget of a model; nothing of how it is searched.

    Args:
        model_name: name of the float model.
        space: candidate bit-widths.
        candidates: (weight bits, activation bits) of each layer, in graph order.
        macs: multiply-adds of each layer for one example.
        float_ops: bit operations of layers that stay float.
        budget: bit operations that a policy may cost, those of float layers among
            them; None: any.
    """

    model_name: str
    space: SearchSpace
    candidates: Candidates
    macs: Mapping[str, int]
    float_ops: int
    budget: float | None = None

    @classmethod
    def of(
        cls,
        model: keras.Model,
        space: SearchSpace | None = None,
        bit_ops_budget: float | None = None,
    ) -> SearchProblem:
        """The problem of a float model.

        Args:
            model: built functional model.
            space: candidate bit-widths; None: the default.
            bit_ops_budget: up to 1 a fraction of full precision, above 1 a count.

        Raises:
            GraphError: the model has no layer to search.
            BudgetError: no policy of the space meets the budget.
        """
        space = space or SearchSpace()
        candidates, macs = space.candidates(model), layer_macs(model)
        float_ops = float_bit_ops(model)
        check_choices(model.name, candidates)
        budget = None
        if bit_ops_budget is not None:
            budget = resolve_budget(bit_ops_budget, macs, candidates, float_ops)
        return cls(model.name, space, candidates, macs, float_ops, budget)

    def expected_bit_ops(self, bits: Sequence[tuple[Any, Any]]) -> tf.Tensor:
        """Bit operations expected under the importances (eq. 7), a scalar.

        With those of layers that stay float.

        Args:
            bits: (weight bits, activation bits) expected in each layer, in the order
                of `macs`; scalars.
        """
        terms = [
            bit_ops(float(macs), *pair)
            for macs, pair in zip(self.macs.values(), bits, strict=True)
        ]
        return tf.add_n(terms) + float(self.float_ops)

    def full_bit_ops(self) -> float:
        """Bit operations of the full-precision model."""
        searched = bit_ops(sum(self.macs.values()), *[FULL_PRECISION_BITS] * 2)
        return float(searched + self.float_ops)

    def searched_budget(self) -> float | None:
        """Bit operations that the budget leaves to the searched layers."""
        return None if self.budget is None else self.budget - self.float_ops

    def most_probable_bits(self, probabilities: Mapping[str, Any]) -> dict:
        """The most probable bits within the budget; see `knapsack`.

        Args:
            probabilities: (pi_w, pi_a) of each layer, arrays [branches].
        """
        return most_probable_bits(
            probabilities, self.candidates, self.macs, self.searched_budget()
        )


def check_choices(name: str, candidates: Candidates) -> None:
    """Refuse a model without layers to search, and warn where none has a choice.

    Args:
        name: of the model.
        candidates: weight and activation bits of each layer.

    Raises:
        GraphError: there is no layer.
    """
    if not candidates:
        raise GraphError(
            "A search needs a Conv2D, DepthwiseConv2D or Dense layer. "
            f"Received: model={name!r} without one."
        )
    if all(len(bits) == 1 for pair in candidates.values() for bits in pair):
        warnings.warn(
            "Nothing is left to search: each layer has one candidate for its weights "
            "and one for its activations, by weight_bits, activation_bits and the "
            "pinned layers of the space. Give more candidates, or take the policy as "
            "it is.",
            stacklevel=4,
        )
