"""Value activation bits for strategies that only value the bits of kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from gmpq_tf.budget import Candidates
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_measure, check_whole
from gmpq_tf.search.choose import choose
from gmpq_tf.search.deltas import default_images, delta_table
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.values import FREE, Bonds, Pair, Valued, Values
from gmpq_tf.spelling import suggest

TIED, MEASURED = "tied", "measured"
# Layer -> weight bits -> value.
WeightValues = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class ActivationsConfig:
    """How activation bits are valued where the strategy values kernel bits only.

    Args:
        activations: tied gives the input of each layer the bits of its kernel; measured
            values each choice by the risk that it alone adds, as loss_delta does.
        images: Images that risks are measured on; none: as many as loss_delta takes.
        measure: What is measured: divergence (of the outputs from the float model's,
            without labels), or task (of the labels).
    """

    activations: str = MEASURED
    images: int | None = None
    measure: Literal["divergence", "task"] = "divergence"

    ways: ClassVar[tuple[str, ...]] = (TIED, MEASURED)

    def __post_init__(self) -> None:
        check_activations(self.activations, self.ways)
        if self.images is not None:
            check_whole("images", self.images, 1)
        check_measure(self.measure)


def check_activations(activations: Any, ways: Sequence[str]) -> None:
    """Refuses an unknown way to value activations.

    Raises:
        StrategyError: it is not one of `ways`; the nearest is given.
    """
    if activations not in ways:
        raise StrategyError(
            f"activations must be one of {', '.join(ways)}. "
            f"Received: activations={activations!r}. {suggest(str(activations), ways)}"
        )


def bonds_of(case: SearchCase, activations: str) -> Bonds:
    """The constraints between weight and activation bits, checked before any work.

    Raises:
        BudgetError: no policy of tied bits keeps the budgets.
    """
    if activations != TIED:
        return FREE
    problem = case.problem
    bonds = Bonds(allowed=tied_pairs(problem.candidates))
    zeros: Any = {
        name: tuple(dict.fromkeys(side, 0.0) for side in pair)
        for name, pair in problem.candidates.items()
    }
    choose(zeros, problem.candidates, problem.limits, bonds)
    return bonds


def tied_pairs(candidates: Candidates) -> dict[str, tuple[Pair, ...]]:
    """Equal (weight bits, activation bits) for each layer whose input has a choice.

    Where the activations lack a bit-width, the nearest candidate is taken (of two the
    wider), also where the weights have no choice themselves.
    """
    return {
        name: tuple((w, min(inputs, key=lambda a: (abs(a - w), -a))) for w in weights)
        for name, (weights, inputs) in candidates.items()
        if len(inputs) > 1
    }


def evaluator_of(case: SearchCase, config: Any, least: int = 1) -> Evaluator:
    """An evaluator on `config.images` images, or on `least` if that is more.

    Args:
        case: the float model, its choices and images.
        config: a config with the fields `images` and `measure`.
        least: number of images that are needed.
    """
    images = max(config.images or default_images(case), least)
    return Evaluator(case, images, labels=config.measure == "task")


def with_activations(
    evaluator: Evaluator,
    config: Any,
    weights: WeightValues,
    bonds: Bonds,
    in_nats: bool,
) -> Valued:
    """Combines the values of weight bits with measured values of activation bits.

    Args:
        evaluator: from `evaluator_of`.
        config: a config with the fields `activations`, `images` and `measure`.
        weights: layer -> bits -> value; more is better.
        bonds: from `bonds_of`.
        in_nats: whether the values are risks in nats, as measured ones are. If not,
            the weights' values are scaled so that their range, summed over layers, is
            that of the activations', which makes the two equally important.

    Returns:
        The values, with a column of the weights' values before scaling.
    """
    case = evaluator.case
    candidates = case.problem.candidates
    zeros = {n: dict.fromkeys(inputs, 0.0) for n, (_, inputs) in candidates.items()}
    column: Values = {n: (weights[n], zeros[n]) for n in candidates}
    if config.activations == TIED:
        return Valued(column, bonds=bonds)
    context = case.context()
    inputs_alone = {n: ((context[n][0],), pair[1]) for n, pair in candidates.items()}
    images = config.images or default_images(case)
    table = delta_table(
        evaluator, context, inputs_alone, {config.measure: 1.0}, 0.0, images=images
    )
    scale = 1.0
    if not in_nats:
        ranges = [_range(weights), _range({n: v[1] for n, v in table.values.items()})]
        # Without a choice on one side there is nothing to be as important as.
        scale = ranges[1] / ranges[0] if min(ranges) > 0 else 1.0
    values: Values = {
        n: ({b: scale * v for b, v in weights[n].items()}, table.values[n][1])
        for n in candidates
    }
    columns = {"weights": column, **_inputs(table)}
    return replace(table, values=values, samples=None, columns=columns)


def _inputs(table: Valued) -> dict[str, Values]:
    """Columns of a table of activations, without its single choice of weights."""
    return {
        name: {n: ({}, inputs) for n, (_, inputs) in own.items()}
        for name, own in table.columns.items()
    }


def _range(values: Mapping[str, Mapping[int, float]]) -> float:
    """Sum over the layers of the difference between largest and smallest value."""
    return sum(max(v.values()) - min(v.values()) for v in values.values())
