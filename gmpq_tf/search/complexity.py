"""The complexity risk: expected costs, and how they are kept within budgets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf import metric_names
from gmpq_tf.cost_tables import CostTable
from gmpq_tf.limits import Limit
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.formulation import PAPER, Formulation
from gmpq_tf.search.importances import Importances
from gmpq_tf.search.penalties import penalty_of
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.search.risks import Risk, Step
from gmpq_tf.search.zeta import adapted_zeta, damped_zeta


class Complexity(Risk):
    """`R_C`: an expected cost (eq. 7) as a fraction of full precision.

    Args:
        problem: candidates and costs.
        table: of the cost.
        limit: which the weight follows; None: it stays.
        zeta: the weight, or where it starts.
        add_weight: makes the variable of it, as `keras.Model.add_weight`.
        suffix: of the metrics' names and of the variable's.
    """

    def __init__(
        self,
        problem: SearchProblem,
        table: CostTable,
        limit: Limit | None,
        zeta: float,
        add_weight: Callable[..., keras.Variable],
        suffix: str = "",
    ) -> None:
        self.problem, self.table, self.limit = problem, table, limit
        self.suffix, self._add_weight = suffix, add_weight
        self.first = 1.0  # share of the budget that is expected before training
        self.name = metric_names.COMPLEXITY_RISK + suffix
        self.metric = metric_names.ZETA + suffix
        self.scale = zeta or RiskConfig.zeta
        self.full = table.full or table.range(problem.candidates)[1]
        # Those of all budgets, this one among them.
        self.beside: tuple[Complexity, ...] = (self,)
        self.zeta = add_weight(
            name=self.metric,
            shape=(),
            initializer=keras.initializers.Constant(zeta),
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",  # all of them compute the same
        )

    def expected(self, step: Step) -> tf.Tensor:
        """Expected cost, its constant part included; a scalar."""
        name = metric_names.expected(self.table.resource)
        if name not in step.noted:
            step.noted[name] = self.problem.expected(self.table, step.branches)
        return step.noted[name]

    def value(self, step: Step) -> tf.Tensor:
        """Expected cost over that of full precision, a scalar."""
        return self.expected(step) / self.full

    def weight(self, step: Step) -> tf.Tensor:
        """Zeta of this step, a scalar; no gradient flows through its controller."""
        zeta = tf.convert_to_tensor(self.zeta)
        if self.limit is not None:
            searched = tf.stop_gradient(self._searched(step))
            zeta = damped_zeta(zeta, searched, self.limit.for_layers, self.scale)
            zeta = self._bounded(step, zeta)
        step.noted[self.metric] = zeta
        return zeta

    def update(self, step: Step) -> None:
        """Let zeta follow the budget."""
        if self.limit is not None:
            zeta = adapted_zeta(
                self.zeta, self._searched(step), self.limit.for_layers, self.scale
            )
            self.zeta.assign(self._bounded(step, zeta))

    def _searched(self, step: Step) -> tf.Tensor:
        """Expected cost of the layers that are searched alone."""
        return self.expected(step) - float(self.table.constant)

    def spent_now(self, branches: Importances) -> float:
        """`spent`, of importances as they are."""
        return float(np.asarray(self.spent(Step(None, None, branches))))

    def _bounded(self, step: Step, zeta: tf.Tensor) -> tf.Tensor:
        """Of several budgets the tightest is spent, neither more nor less.

        The others only bound: their zeta is never negative.
        """
        if len(self.beside) == 1:
            return zeta
        spent = tf.stop_gradient(tf.stack([each.spent(step) for each in self.beside]))
        own = spent[self.beside.index(self)]
        return tf.where(own >= tf.reduce_max(spent), zeta, tf.maximum(zeta, 0.0))

    def spent(self, step: Step) -> tf.Tensor:
        """Expected cost of those over the budget, a scalar."""
        assert self.limit is not None
        return self._searched(step) / self.limit.for_layers


class Penalized(Complexity):
    """A budget kept by a penalty of the share of it that is expected to be spent.

    Args:
        penalty: a row of `PENALTIES`.
        stages: as of `Formulation`.
        args: as of `Complexity`; zeta weighs the penalty, and stays.
        kwargs: likewise.
    """

    def __init__(
        self,
        penalty: Callable[[tf.Tensor], tf.Tensor],
        stages: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.penalty, self.stages = penalty, stages
        self.allowed = self._add_weight(
            name=f"allowed{self.suffix}", shape=(), initializer="ones", trainable=False
        )

    def weight(self, step: Step) -> tf.Tensor:
        """Zeta, a scalar."""
        step.noted[self.metric] = tf.convert_to_tensor(self.zeta)
        return step.noted[self.metric]

    def weighted(self, step: Step) -> tf.Tensor:
        """Zeta times the penalty, a scalar; what is noted is the cost, as of eq. 7."""
        step.values[self.name] = self.value(step)
        allowed = tf.convert_to_tensor(self.allowed)
        return self.weight(step) * self.penalty(self.spent(step) / allowed)

    def update(self, step: Step) -> None:
        """Nothing: zeta stays."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Tighten the budget, stage by stage."""
        self.allowed.assign(tightened(self.first, epoch, epochs, self.stages))


def tightened(first: float, epoch: int, epochs: int, stages: int) -> float:
    """The budget of an epoch, as a multiple of the one that is kept in the end.

    Compression, its reciprocal, rises in equal steps from that of `first` to 1.

    Args:
        first: expected cost over the budget before training.
        epoch: from 0.
        epochs: of the whole search.
        stages: how many steps there are.
    """
    if stages == 1 or first <= 1:
        return 1.0
    done = min(epoch * stages // epochs + 1, stages) / stages
    return 1 / ((1 - done) / first + done)


def complexities(
    problem: SearchProblem,
    zeta: float,
    add_weight: Callable[..., keras.Variable],
    formulation: Formulation = PAPER,
) -> tuple[Complexity, ...]:
    """One risk a budget, each with its own zeta; without budgets that of eq. 7.

    Args:
        problem: candidates, costs and budgets.
        zeta: as in `Complexity`.
        add_weight: likewise.
        formulation: whether zeta follows the budgets, or penalties keep them.
    """
    penalty = penalty_of(formulation.penalty)
    make: Callable[..., Complexity] = Complexity
    if penalty is not None:
        make = functools.partial(Penalized, penalty, formulation.stages)
    risks: list[Complexity] = []
    for table, limit in problem.priced():
        suffix = f"_{table.resource}" if risks else ""
        # A budget that bits cannot change has no limit to keep.
        kind: Callable[..., Complexity] = Complexity if limit is None else make
        risks.append(kind(problem, table, limit, zeta, add_weight, suffix))
    for risk in risks:
        risk.beside = tuple(risks)
    return tuple(risks)
