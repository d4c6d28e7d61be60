"""Values each choice by the risk it adds in a hypernet trained with random bits."""

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

WEIGHTS = "explored"  # file of the hypernet's weights, kept beside the journal


@dataclass(frozen=True)
class ExploreConfig:
    """How one hypernet is trained to serve all policies.

    Args:
        training_steps: Steps of training before anything is measured; each uses other
            bits.
        learning_rate: Learning rate of weights, steps and ranges; it falls to zero.
        training_batch_size: Images per training step.
        measure: Loss in training and measuring: divergence (of the outputs from the
            float model's, without labels), or task (cross-entropy of the labels).
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
    """Options of `ExploreConfig`, and how the risk of each choice is measured.

    Args:
        images: Images it is measured on; none: as many as loss_delta takes.
        statistics_images: Images on which the statistics of BatchNormalization are
            measured anew for each choice; 0 keeps those of training, which average over
            several bit-widths.
        healing_steps: Training steps of each choice before it is measured, on the same
            images for all choices, so that losses that training repairs do not count.
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

    First one hypernet is trained, each step with random bits for every layer. In it
    `value(b) = -(risk(one tensor at b bits) - risk(policy))` is measured around the
    uniform policy of the budget, then around the policy that these values choose, until
    the policy repeats. Unlike the float model of `loss_delta`, this network has adapted
    to few bits, as a network does that is fine-tuned after the search.

    Args:
        case: the float model, its choices, budgets and images.
        config: length of training, and what is measured.

    Returns:
        The values, with samples per image and a column of the risk.

    Source: Koryakovskiy et al., "One-Shot Model for Mixed-Precision Quantization", CVPR
    2023, for training with random bits. Unlike there, weights are trained before
    anything is chosen, and choices are measured.
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
    """Trains a hypernet with given bits in each step, unless the journal has it.

    Args:
        case: the float model, its choices and images.
        config: options of the training.
        draws: an endless series of policies, one per training step.
        images: number of first images that are not used in training, but to measure on;
            None: `default_images`.

    Returns:
        A function that returns the trained hypernet.
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
        if not ready:  # trained before an interruption: read the weights from the file
            case.journal.give_back(WEIGHTS, evaluator.hypernet.variables)
            ready = True
        return evaluator.hypernet

    options = {field.name: getattr(config, field.name) for field in EXPLORING}
    case.journal.once({"explore": options}, train)
    return hypernet


def random_draws(case: SearchCase) -> Iterable[Bits]:
    """Yields random policies without end, uniform over each tensor's candidates."""
    rng = np.random.default_rng(case.seed)
    while True:
        yield {
            name: (int(rng.choice(weights)), int(rng.choice(inputs)))
            for name, (weights, inputs) in case.problem.candidates.items()
        }


def start_of(case: SearchCase) -> dict[str, tuple[int, int]]:
    """Returns the uniform policy of the budgets or, without one, the nearest to it."""
    candidates, limits = case.problem.candidates, case.problem.limits
    found = uniform_bits(candidates, limits)
    if found is not None:
        return found
    flat: dict[str, Any] = {
        name: tuple(np.full(len(side), 1 / len(side)) for side in pair)
        for name, pair in candidates.items()
    }
    return choose(expected_bits(flat, candidates), candidates, limits, spends=True)
