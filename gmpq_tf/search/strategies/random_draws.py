"""The baseline that every search must beat: the best of some random policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gmpq_tf.limits import Limit
from gmpq_tf.policy.draw import draw_bits
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_measure, check_number, check_whole
from gmpq_tf.search.deltas import default_images
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.finalists import halve
from gmpq_tf.search.values import Bits, Valued, only

TRIES = 20  # draws per policy, because the same policy may be drawn twice


@dataclass(frozen=True)
class RandomConfig:
    """How many policies are drawn, and how they are compared.

    Args:
        policies: Number of policies drawn; successive halving finds the best.
        images: Images they are measured on; none: as many as loss_delta takes.
        measure: divergence (of the outputs from the float model's, without labels), or
            task (cross-entropy of the labels).
        steps: Steps of fine-tuning in the last round; 0 compares them without training.
        learning_rate: Learning rate of fine-tuning; it falls to zero.
        batch_size_of_steps: Images per step of fine-tuning.
    """

    policies: int = 16
    images: int | None = None
    measure: Literal["divergence", "task"] = "divergence"
    steps: int = 0
    learning_rate: float = 0.01
    batch_size_of_steps: int = 64

    def __post_init__(self) -> None:
        check_whole("policies", self.policies, 1)
        if self.images is not None:
            check_whole("images", self.images, 1)
        check_whole("steps", self.steps, 0)
        check_whole("batch_size_of_steps", self.batch_size_of_steps, 1)
        check_number("learning_rate", self.learning_rate, 0.0, exclusive=True)
        check_measure(self.measure)


def random_draws(case: SearchCase, config: RandomConfig) -> Valued:
    """Draws policies that spend the budgets, and keeps the best.

    Args:
        case: the float model, its choices, budgets and images.
        config: number of policies, and how they are compared.

    Returns:
        Values by which the best policy is chosen, and the ranking.

    Raises:
        StrategyError: there is no budget.
    """
    evaluator = Evaluator(
        case,
        config.images or default_images(case),
        labels=config.measure == "task",
    )
    risk = config.measure
    drawn = draw(case, config.policies)
    ranked = halve(
        drawn,
        evaluator,
        risk,
        config.steps,
        config.learning_rate,
        config.batch_size_of_steps,
    )
    history = [
        {"policy": {n: list(pair) for n, pair in bits.items()}, "risk": float(r.mean())}
        for bits, r in ranked
    ]
    return Valued(only(ranked[0][0]), ranked=tuple(ranked), history=tuple(history))


def draw(case: SearchCase, count: int) -> list[Bits]:
    """Draws different random policies that keep and use up the budgets of a case.

    Args:
        case: its choices, budgets, and the seed of the draws.
        count: number of policies; fewer are returned if no more are found.

    Raises:
        StrategyError: there is no budget.
    """
    problem, limits = case.problem, check_budgeted(case)
    found: list[Bits] = []
    for attempt in range(TRIES * count):
        seed = case.seed * TRIES * 10_000 + attempt
        bits = draw_bits(problem.candidates, limits, seed)
        if bits not in found:
            found.append(bits)
        if len(found) == count:
            break
    return found


def check_budgeted(case: SearchCase) -> list[Limit]:
    """Returns the limits on costs that depend on the bits; refuses a case without one.

    Raises:
        StrategyError: there is no such limit.
    """
    problem = case.problem
    limits = [e for e in problem.limits if not e.table.is_fixed(problem.candidates)]
    if not limits:
        raise StrategyError(
            "Whole policies are tried for a budget. Received: budget=None, or one "
            "that every policy keeps. Give such as budget='W3A3'."
        )
    return limits
