"""Read-only views of a search: candidates, budgets, importances, expected cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.budget import Candidates
from gmpq_tf.cost_tables import CostTable
from gmpq_tf.limits import Limit
from gmpq_tf.search.attribution_risk import Generalization, exponent
from gmpq_tf.search.complexity import Complexity
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.gates import kept_channels
from gmpq_tf.search.importances import Importances
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.space import SearchSpace


class SearchViews:
    """Candidates, budgets and importances of a `PolicySearch`."""

    problem: SearchProblem
    branches: Importances
    complexity: Complexity
    hypernet: keras.Model
    risk: RiskConfig
    formulation: Formulation
    generalization: Generalization | None

    @property
    def space(self) -> SearchSpace:
        """Candidate bit-widths, and which layers are pinned."""
        return self.problem.space

    @property
    def candidates(self) -> Candidates:
        """(Weight bits, activation bits) that each layer may take."""
        return self.problem.candidates

    @property
    def macs(self) -> Mapping[str, int]:
        """Multiply-adds of each searched layer for one example."""
        table, candidates = self.problem.bit_ops, self.problem.candidates
        return {n: int(table.macs(n, c) or 0) for n, c in candidates.items()}

    @property
    def budget(self) -> float | None:
        """Bit operations that the policy may cost; None: any."""
        return self.problem.budget

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limit of each resource that has a budget."""
        return self.problem.limits

    @property
    def zeta(self) -> keras.Variable:
        """Weight of the (first) complexity risk, a scalar."""
        return self.complexity.zeta

    @property
    def importance_variables(self) -> list[keras.Variable]:
        """The trainable importances of every searched layer."""
        return self.branches.variables

    @property
    def network_variables(self) -> list[keras.Variable]:
        """The hypernet's trainable weights, ranges and steps, without importances."""
        importances = {id(v) for v in self.importance_variables}
        return [
            v for v in self.hypernet.trainable_variables if id(v) not in importances
        ]

    def mixed_layers(self) -> list[Any]:
        """Layers of the hypernet that hold quantizers, in graph order."""
        return list(self.branches.layers)

    @property
    def temperature(self) -> float:
        """Temperature of the branch probabilities; 1 is the paper's softmax."""
        return self.branches.temperature

    def set_temperature(self, value: float) -> None:
        """Sets the temperature of every layer's branch probabilities, >= 1e-6."""
        self.branches.set_temperature(value)

    def importances(self) -> dict:
        """Candidate bits and branch probabilities of each layer, as plain JSON."""
        return self.branches.to_json()

    def kept_channels(self) -> dict[str, tuple[bool, ...]]:
        """Returns masks for `prune_channels`, of layers that lose some channels."""
        if self.formulation.gates is None:
            return {}
        multiple = self.formulation.gates.channel_multiple
        return kept_channels(self.branches.gates[0], multiple)

    def expected_bit_ops(self) -> tf.Tensor:
        """Bit operations expected under the importances (eq. 7), a scalar.

        Layers that stay float are included.
        """
        return self.expected_cost(self.problem.bit_ops)

    def expected_cost(self, table: CostTable) -> tf.Tensor:
        """Cost expected under the importances (eq. 7), a scalar in the table's unit.

        Args:
            table: cost table of a resource, such as `limits[0].table`.
        """
        return self.problem.expected(table, self.branches)

    def full_bit_ops(self) -> float:
        """Bit operations of the full-precision model."""
        return self.problem.full_bit_ops()

    def exponent(self) -> tf.Tensor:
        """The exponent p of the target, a scalar: fixed, or eq. 8."""
        bits = self.branches.expected_bits()
        if self.generalization is None:
            return exponent(self.risk, bits)
        return self.generalization.exponent(bits)
