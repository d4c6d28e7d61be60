"""Value of a choice: the risk that it adds in a hypernet trained with drawn bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

import keras
import numpy as np

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_measure, check_number, check_whole
from gmpq_tf.search.choose import choose, uniform_bits
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.deltas import default_images
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.readouts import ReadoutConfig, expected_bits, perturbation
from gmpq_tf.search.values import Bits, Valued

WEIGHTS = "explored"  # of the hypernet, kept beside the journal


@dataclass(frozen=True)
class ExploreConfig:
    """How one hypernet is trained to serve all policies.

    Args:
        training_steps: Steps of training before anything is measured; each computes
            with bits of its own.
        learning_rate: Of weights, steps and ranges; it falls to zero.
        training_batch_size: Images of a step.
        measure: What is trained and measured: divergence (of the outputs from the float
            model's, without labels), or task (cross-entropy of the labels).
    """

    training_steps: int = 700
    learning_rate: float = 0.01
    training_batch_size: int = 64
    measure: Literal["divergence", "task"] = "divergence"

    def __post_init__(self) -> None:
        check_whole("training_steps", self.training_steps, 0)
        check_number("learning_rate", self.learning_rate, 0.0, exclusive=True)
        check_whole("training_batch_size", self.training_batch_size, 1)
        check_measure(self.measure)


EXPLORING = fields(ExploreConfig)


@dataclass(frozen=True)
class OneShotConfig(ExploreConfig):
    """As `ExploreConfig`, and how the risk added by each choice is measured.

    Args:
        images: Images it is measured on; none: as many as loss_delta takes.
        statistics_images: Images on which the statistics of BatchNormalization are
            measured anew for each choice; 0 keeps those of training, which are of
            several bit-widths at once.
        healing_steps: Steps of training of each choice before it is measured, of the
            same images for all, so that what training heals does not count.
    """

    images: int | None = None
    statistics_images: int = 256
    healing_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None:
            check_whole("images", self.images, 1)
        check_whole("statistics_images", self.statistics_images, 0)
        check_whole("healing_steps", self.healing_steps, 0)


def one_shot(case: SearchCase, config: OneShotConfig) -> Valued:
    """Values every choice by the risk it adds to a policy in a trained hypernet.

    One hypernet is trained first, each step with bits drawn at random, one pair a
    layer. In it `value(b) = -(risk(one tensor at b bits) - risk(policy))`, measured
    around the uniform policy of the budget, then around the one that the table chooses,
    until it repeats. Unlike `loss_delta`, whose float model has never seen few bits,
    this one has adapted to them, as the network will that is fine-tuned after.

    Args:
        case: the float model, its choices, budgets and images.
        config: how long, and what is measured.

    Returns:
        The values, with samples and a column of the risk.

    Source: Koryakovskiy et al., "One-Shot Model for Mixed-Precision Quantization", CVPR
    2023, for training with drawn bits. Unlike there weights are trained before anything
    is chosen, and choices are measured.
    """
    trained = explored(case, config, random_draws(case), config.images)
    readout = ReadoutConfig(
        "perturbation", config.measure, config.images, config.statistics_images
    )
    training = {
        "learning_rate": config.learning_rate,
        "batch_size": config.training_batch_size,
    }
    return perturbation(
        case,
        start_of(case),
        readout,
        RiskConfig(eta=0.0),
        trained,
        config.healing_steps,
        **(training if config.healing_steps else {}),
    )


def explored(
    case: SearchCase,
    config: ExploreConfig,
    draws: Iterable[Bits],
    images: int | None = None,
) -> Callable[[], keras.Model]:
    """Trains a hypernet with drawn bits, or lets the journal answer where it has it.

    Args:
        case: the float model, its choices and images.
        config: how it is trained.
        draws: policies, one a step, without end.
        images: how many first images it is not trained on; None: `default_images`.

    Returns:
        What gives the trained hypernet.
    """
    evaluator = Evaluator(
        case, images or default_images(case), labels=config.measure == "task"
    )
    ready = config.training_steps == 0

    def train() -> float:
        nonlocal ready
        if ready:
            return 0.0
        ready = True
        loss = evaluator.explore(
            iter(draws),
            config.training_steps,
            config.learning_rate,
            config.training_batch_size,
        )
        case.journal.keep(WEIGHTS, evaluator.hypernet.variables)
        return loss

    def hypernet() -> keras.Model:
        nonlocal ready
        if not ready:  # it was trained before an interruption
            case.journal.give_back(WEIGHTS, evaluator.hypernet.variables)
            ready = True
        return evaluator.hypernet

    options = {field.name: getattr(config, field.name) for field in EXPLORING}
    case.journal.once({"explore": options}, train)
    return hypernet


def random_draws(case: SearchCase) -> Iterable[Bits]:
    """Policies whose bits are drawn from the candidates of each tensor, without end."""
    rng = np.random.default_rng(case.seed)
    while True:
        yield {
            name: (int(rng.choice(weights)), int(rng.choice(inputs)))
            for name, (weights, inputs) in case.problem.candidates.items()
        }


def start_of(case: SearchCase) -> dict[str, tuple[int, int]]:
    """The uniform policy of the budgets; where there is none, the nearest to it."""
    candidates, limits = case.problem.candidates, case.problem.limits
    found = uniform_bits(candidates, limits)
    if found is not None:
        return found
    flat: dict[str, Any] = {
        name: tuple(np.full(len(side), 1 / len(side)) for side in pair)
        for name, pair in candidates.items()
    }
    return choose(expected_bits(flat, candidates), candidates, limits)
