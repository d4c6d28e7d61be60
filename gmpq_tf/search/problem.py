"""What a search looks for: the bits of a model's layers, within budgets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.bits import PolicyError
from gmpq_tf.budget import BIT_OPS, Candidates, bit_ops
from gmpq_tf.cost_tables import CostTable, TableOptions, cost_table
from gmpq_tf.graph import GraphError, check_float
from gmpq_tf.kernel_kinds import listed
from gmpq_tf.limits import Limit, given_budget, limits_of
from gmpq_tf.search.importances import Importances
from gmpq_tf.search.knapsack import check_limits, most_probable_bits
from gmpq_tf.space import SearchSpace


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """Candidates, costs and budgets of a model, independent of the strategy.

    Args:
        model_name: name of the float model.
        space: candidate bit-widths.
        candidates: (weight bits, activation bits) of each layer, in graph order.
        bit_ops: costs in bit operations, whatever resources the budgets limit.
        limits: limits of the costs; () for none.
    """

    model_name: str
    space: SearchSpace
    candidates: Candidates
    bit_ops: CostTable
    limits: tuple[Limit, ...] = ()

    @classmethod
    def of(
        cls,
        model: keras.Model,
        space: SearchSpace | None = None,
        bit_ops_budget: float | None = None,
        budget: Any = None,
        options: TableOptions | None = None,
    ) -> SearchProblem:
        """The problem of a float model.

        Args:
            model: built functional model.
            space: candidate bit-widths; None: the default.
            bit_ops_budget: up to 1 a fraction of full precision, above 1 a count.
            budget: as `parse_budget` takes it, instead.
            options: what cost tables need besides the model.

        Raises:
            GraphError: the model has no layer to search, or is quantized already.
            PolicyError: the space is no `SearchSpace`.
            BudgetError: no policy of the space keeps the budgets.
        """
        check_float(model)
        space = SearchSpace() if space is None else space
        if not isinstance(space, SearchSpace):
            raise PolicyError(
                f"space must be a SearchSpace. Received: space={space!r}. Give such as "
                "SearchSpace(weight_bits=(2, 4, 8), activation_bits=(4, 8))."
            )
        candidates, table = space.candidates(model), cost_table(BIT_OPS, model)
        check_choices(model.name, candidates)
        given, what = given_budget(budget, bit_ops_budget)
        limits = limits_of(model, candidates, given, space.pinned, options, what)
        check_limits(candidates, limits)
        return cls(model.name, space, candidates, table, limits)

    def priced(self) -> tuple[tuple[CostTable, Limit | None], ...]:
        """The cost tables that guide a search, each with its limit.

        They are those of budgets whose cost depends on the bits; without any, that of
        bit operations, with the limit None.
        """
        found = [
            (each.table, each)
            for each in self.limits
            if not each.table.is_fixed(self.candidates)
        ]
        return tuple(found) or ((self.bit_ops, None),)

    @property
    def budget(self) -> float | None:
        """Bit operations that a policy may cost; None: any."""
        found = [each.budget for each in self.limits if each.resource == BIT_OPS]
        return found[0] if found else None

    def expected(self, table: CostTable, branches: Importances) -> tf.Tensor:
        """Cost expected under the importances, `sum_k pi_w^T C_k pi_a` (eq. 7).

        It includes the constant part, and not what channel gates leave out; a scalar in
        the unit of the table.

        Args:
            table: costs of the resource.
            branches: importances of the layers of `candidates`, in the same order.
        """
        items = self.candidates.items()
        macs = [table.macs(name, pair) for name, pair in items]
        shares = branches.shares()
        terms = []
        if any(each is not None for each in macs):
            means = zip(macs, branches.expected_bits(), strict=True)
            rows = [(float(m), *bits) for m, bits in means if m is not None]
            # For all layers at once, which makes a smaller graph.
            costs = bit_ops(*map(tf.stack, zip(*rows, strict=True)))
            if shares is not None:
                known = zip(macs, shares, strict=True)
                costs *= tf.stack([share for m, share in known if m is not None])
            terms.append(tf.reduce_sum(costs))
        if None in macs:
            chosen = zip(items, macs, branches.branch_probabilities(), strict=True)
            for index, ((name, pair), each, pi) in enumerate(chosen):
                if each is None:
                    costs = tf.constant(table.of(name, pair), tf.float32)
                    row = tf.linalg.matvec(costs, pi.activations)
                    share = 1.0 if shares is None else shares[index]
                    terms.append(share * tf.reduce_sum(pi.weights * row))
        return tf.add_n(terms) + float(table.constant)

    def full_bit_ops(self) -> float:
        """Bit operations of the full-precision model."""
        assert self.bit_ops.full is not None
        return float(self.bit_ops.full)

    def of_smaller(
        self, model: keras.Model, options: TableOptions | None = None
    ) -> SearchProblem:
        """Returns the problem of a pruned model, with the same choices and budgets.

        Args:
            model: from `prune_channels`.
            options: what cost tables need besides the model.
        """
        limits = tuple(
            Limit(cost_table(each.resource, model, options), each.budget, each.said)
            for each in self.limits
        )
        table = cost_table(BIT_OPS, model)
        check_limits(self.candidates, limits)
        return replace(self, bit_ops=table, limits=limits)

    def most_probable_bits(self, probabilities: Mapping[str, Any]) -> dict:
        """The most probable bits within the budgets; see `knapsack`.

        Args:
            probabilities: (pi_w, pi_a) of each layer, arrays [branches].
        """
        return most_probable_bits(probabilities, self.candidates, self.limits)


def check_choices(name: str, candidates: Candidates) -> None:
    """Refuses a model without layers to search, and warns if no layer has a choice.

    Args:
        name: name of the model.
        candidates: (weight bits, activation bits) of each layer.

    Raises:
        GraphError: there is no layer to search.
    """
    if not candidates:
        raise GraphError(
            f"A search needs one of {listed()}. Received: model={name!r} without one."
        )
    if all(len(bits) == 1 for pair in candidates.values() for bits in pair):
        warnings.warn(
            "Nothing is left to search: each layer has one candidate for its weights "
            "and one for its activations, by weight_bits, activation_bits and the "
            "pinned layers of the space. Give more candidates, or take the policy as "
            "it is.",
            stacklevel=4,
        )
