"""How a search keeps its budget and takes gradients; the default is the paper's way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gmpq_tf.search.checks import check_number, check_whole
from gmpq_tf.search.decisiveness import Decisiveness
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.gates import GatesConfig, Information
from gmpq_tf.search.penalties import CONTROLLER, penalty_of
from gmpq_tf.search.risks import Risk
from gmpq_tf.search.rules import RuleConfig

HALVINGS = 40  # halvings of the interval in which a start is searched


@dataclass(frozen=True)
class Formulation:
    """How a search keeps its budget, and takes its gradients.

    Args:
        penalty: a name in `PENALTIES`, whose weight is zeta; "controller": a controller
            adapts zeta until the budget is met.
        stages: number of stages in which a penalty's budget tightens from the expected
            cost at the start to the given one; 1 keeps it constant.
        prob1: weight of the Prob-1 regularizer in the last epoch; 0: none.
        start: expected cost before training, as a multiple of the budget; of several
            budgets the one with the largest multiple counts. None: that of the
            relaxation's initial importances.
        rule: how gradients are taken.
        gates: how channels are pruned during the search; None: no pruning.
    """

    penalty: str = CONTROLLER
    stages: int = 1
    prob1: float = 0.0
    start: float | None = None
    rule: RuleConfig = field(default_factory=RuleConfig)
    gates: GatesConfig | None = None

    def __post_init__(self) -> None:
        penalty_of(self.penalty)
        check_whole("stages", self.stages, 1)
        check_number("prob1", self.prob1, 0.0)
        if self.start is not None:
            check_number("start", self.start, 0.0, exclusive=True)

    def check_budget(self, limits: Any) -> None:
        """Refuses a penalty or a start without a budget, which both refer to.

        Raises:
            StrategyError: there is no budget, and one of them needs it.
        """
        needs = self.penalty != CONTROLLER or self.start is not None
        if needs and not limits:
            raise StrategyError(
                "A penalty is of how much of a budget is spent. "
                f"Received: penalty={self.penalty!r}, start={self.start!r} and no "
                "budget. Pass a budget such as 'W4A4', or penalty='controller'."
            )

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values, for `from_config`."""
        found = {**vars(self), "rule": dict(vars(self.rule))}
        del found["gates"]
        if self.gates is not None:
            found["gates"] = dict(vars(self.gates))
        return found

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Formulation:
        """The formulation that `to_config` described."""
        gates = config.get("gates")
        return cls(
            **{
                **config,
                "rule": RuleConfig(**config["rule"]),
                "gates": None if gates is None else GatesConfig(**gates),
            }
        )


PAPER = Formulation()


def prepare(search: Any) -> tuple[Risk, ...]:
    """Sets a search up for its formulation, before anything is trained.

    Args:
        search: a `PolicySearch` whose importances and complexity risks exist.

    Returns:
        The risks that the formulation adds.
    """
    formulation = search.formulation
    if formulation.start is not None and search.complexity.limit is not None:
        start_at(search, formulation.start)
    for risk in search.complexity.beside:
        if risk.limit is not None:
            risk.first = risk.spent_now(search.branches)
    added: list[Risk] = []
    if formulation.prob1:
        added.append(
            Decisiveness(search.branches, formulation.prob1, search.add_weight)
        )
    if formulation.gates is not None:
        (gates,) = search.branches.gates
        added.append(Information(gates, formulation.gates.information))
    return tuple(added)


def start_at(search: Any, multiple: float) -> None:
    """Sets importances so that the expected cost is a multiple of the budget.

    Of several budgets the one with the largest multiple counts. The expected bits of
    all tensors are the same share of the way from their fewest to their most bits. If
    the candidates do not reach the cost, the nearest possible one is taken.

    Args:
        search: a `PolicySearch`, with a budget.
        multiple: wanted expected cost, over the budget.
    """
    limited = [risk for risk in search.complexity.beside if risk.limit is not None]
    sides = [
        side
        for layer in search.branches.layers
        for side in (layer.kernel_branches, layer.input_branches)
    ]

    def spent(share: float) -> float:
        for side in sides:
            low, high = side.bits[0], side.bits[-1]
            side.set_mean(low + share * (high - low))
        return max(risk.spent_now(search.branches) for risk in limited)

    low, high = 0.0, 1.0
    for _ in range(HALVINGS if any(len(side.bits) > 1 for side in sides) else 0):
        middle = (low + high) / 2
        if spent(middle) < multiple:
            low = middle
        else:
            high = middle
