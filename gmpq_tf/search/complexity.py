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
from gmpq_tf.search.penalties import TWO_SIDED, penalty_of
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.search.risks import Risk, Step
from gmpq_tf.search.zeta import adapted_zeta, damped_zeta


class Complexity(Risk):
    """`R_C`: an expected cost (eq. 7) as a fraction of full precision.

    Args:
        problem: candidates and costs.
        table: costs of each layer and bit-width.
        limit: budget that zeta is controlled to keep; None: zeta is constant.
        zeta: weight of the risk; with a limit, its start.
        add_weight: makes the variable zeta, as `keras.Model.add_weight`.
        suffix: suffix of the names of the metrics and of the variable.
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
        # The complexity risks of all budgets, this one among them.
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
        """Expected cost (eq. 7), with its constant part: a scalar, in table units."""
        name = metric_names.expected(self.table.resource)
        if name not in step.noted:
            step.noted[name] = self.problem.expected(self.table, step.branches)
        return step.noted[name]

    def value(self, step: Step) -> tf.Tensor:
        """Expected cost as a fraction of full precision, a scalar."""
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
        """Moves zeta by the integral term of its controller (see `zeta`)."""
        if self.limit is not None:
            zeta = adapted_zeta(
                self.zeta, self._searched(step), self.limit.for_layers, self.scale
            )
            self.zeta.assign(self._bounded(step, zeta))

    def _searched(self, step: Step) -> tf.Tensor:
        """Expected cost of the searched layers, without the constant part."""
        return self.expected(step) - float(self.table.constant)

    def spent_now(self, branches: Importances) -> float:
        """`spent` for the current importances, as a float."""
        return float(np.asarray(self.spent(Step(None, None, branches))))

    def _bounded(self, step: Step, zeta: tf.Tensor) -> tf.Tensor:
        """Zeta of one of several budgets, a scalar.

        The budget that is spent most is met exactly: its zeta may be negative, to spend
        more. The others are upper bounds: their zeta is never negative.
        """
        if len(self.beside) == 1:
            return zeta
        return tf.where(self.leads(step), zeta, tf.maximum(zeta, 0.0))

    def leads(self, step: Step) -> tf.Tensor:
        """Whether no other budget is spent more than this one, a scalar."""
        spent = tf.stop_gradient(tf.stack([each.spent(step) for each in self.beside]))
        return spent[self.beside.index(self)] >= tf.reduce_max(spent)

    def spent(self, step: Step) -> tf.Tensor:
        """Expected cost of the searched layers over their budget, a scalar."""
        assert self.limit is not None
        return self._searched(step) / self.limit.for_layers


class Penalized(Complexity):
    """A budget kept by a penalty on the share of it that is expected to be spent.

    Of several budgets the one that is spent most is met; the others are upper bounds.

    Args:
        penalty: a row of `PENALTIES`.
        stages: as in `Formulation`.
        args: as for `Complexity`; zeta weighs the penalty and is constant.
        kwargs: as for `Complexity`.
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
        """The constant weight zeta, a scalar."""
        step.noted[self.metric] = tf.convert_to_tensor(self.zeta)
        return step.noted[self.metric]

    def weighted(self, step: Step) -> tf.Tensor:
        """Zeta times the penalty, a scalar; the logged value is the cost of eq. 7."""
        step.values[self.name] = self.value(step)
        spent = self.spent(step) / tf.convert_to_tensor(self.allowed)
        if self.penalty in TWO_SIDED and len(self.beside) > 1:
            # As of zeta: only the budget that is spent most is met exactly.
            spent = tf.where(self.leads(step), spent, tf.maximum(spent, 1.0))
        return self.weight(step) * self.penalty(spent)

    def update(self, step: Step) -> None:
        """Does nothing, since zeta is constant here."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Sets the budget of this epoch's stage; see `tightened`."""
        self.allowed.assign(tightened(self.first, epoch, epochs, self.stages))


def tightened(first: float, epoch: int, epochs: int, stages: int) -> float:
    """The budget of an epoch, as a multiple of the final budget.

    Its reciprocal, the compression, rises in equal steps from `1 / first` to 1.

    Args:
        first: expected cost before training, over the budget.
        epoch: number of the epoch, from 0.
        epochs: number of epochs of the whole search.
        stages: number of steps; no more than epochs are taken.
    """
    if stages == 1 or first <= 1:
        return 1.0
    stages = min(stages, epochs)  # the last epoch is always of the whole budget
    done = (stage_of(epoch, epochs, stages) + 1) / stages
    return 1 / ((1 - done) / first + done)


def stage_of(epoch: int, epochs: int, stages: int) -> int:
    """The stage, from 0, that an epoch belongs to, if all have about the same length.

    Args:
        epoch: number of the epoch, from 0.
        epochs: number of epochs of the whole search.
        stages: number of stages; no more than epochs are counted.
    """
    stages = min(stages, epochs)
    return min(epoch * stages // epochs, stages - 1)


def complexities(
    problem: SearchProblem,
    zeta: float,
    add_weight: Callable[..., keras.Variable],
    formulation: Formulation = PAPER,
) -> tuple[Complexity, ...]:
    """One risk for each budget, each with its own zeta; without budgets that of eq. 7.

    Args:
        problem: candidates, costs and budgets.
        zeta: as in `Complexity`.
        add_weight: as in `Complexity`.
        formulation: whether zeta follows the budgets, or penalties keep them.
    """
    penalty = penalty_of(formulation.penalty)
    make: Callable[..., Complexity] = Complexity
    if penalty is not None:
        make = functools.partial(Penalized, penalty, formulation.stages)
    risks: list[Complexity] = []
    for table, limit in problem.priced():
        suffix = f"_{table.resource}" if risks else ""
        # A budget whose cost the bits cannot change is not controlled; the weight of a
        # penalty is none of the cost itself.
        kind: Callable[..., Complexity] = Complexity if limit is None else make
        own = 0.0 if limit is None and penalty is not None else zeta
        risks.append(kind(problem, table, limit, own, add_weight, suffix))
    for risk in risks:
        risk.beside = tuple(risks)
    return tuple(risks)
