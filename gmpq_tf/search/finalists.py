"""Finds the best of some policies by fine-tuning and measuring: successive halving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number, check_whole
from gmpq_tf.search.choose import shortlist, uniform_bits
from gmpq_tf.search.deltas import default_images
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.judge import Judge
from gmpq_tf.search.values import Bits, Valued

SHARES = (0.25, 0.5, 1.0)  # share of the steps, or of the images, in each round


@dataclass(frozen=True)
class FinalistsConfig:
    """How the best policies of any strategy are compared in the end.

    Args:
        finalists: Number of policies that are compared, the uniform one of the budget
            among them; 0 takes the policy of the best value without comparing.
        finalist_steps: Steps of fine-tuning in the last of three rounds; 0 compares
            them without training.
        finalist_learning_rate: Learning rate of fine-tuning; it falls to zero.
        finalist_batch_size: Number of images in a step.
        finalist_images: Number of images to measure on; none: as many as a table takes.
    """

    finalists: int = 0
    finalist_steps: int = 200
    finalist_learning_rate: float = 0.01
    finalist_batch_size: int = 64
    finalist_images: int | None = None

    def __post_init__(self) -> None:
        check_whole("finalists", self.finalists, 0)
        if self.finalists == 1:
            raise StrategyError(
                "finalists must be 2 or more, or 0 for none. Received: finalists=1."
            )
        check_whole("finalist_steps", self.finalist_steps, 0)
        check_whole("finalist_batch_size", self.finalist_batch_size, 1)
        rate = self.finalist_learning_rate
        check_number("finalist_learning_rate", rate, 0.0, exclusive=True)
        if self.finalist_images is not None:
            check_whole("finalist_images", self.finalist_images, 1)


NO_FINALISTS = FinalistsConfig()


def check_data(case: SearchCase, config: FinalistsConfig) -> None:
    """Refuses data that finalists cannot be trained on, before minutes of measuring.

    Args:
        case: the case, with its images.
        config: how policies are compared in the end.

    Raises:
        InputError: there are too few images besides those that measure.
        TaskError: labels do not fit the outputs.
    """
    if not config.finalists or not config.finalist_steps:
        return
    held = case.data.first(config.finalist_images or default_images(case))
    inputs, labels = next(case.data.training(config.finalist_batch_size, len(held)))
    if labels is not None:
        outputs = case.model(case.data.inputs.structured(inputs), training=False)
        scores = [np.asarray(y) for y in keras.tree.flatten(outputs)]
        Judge(case.model, scores, labels, case.output_kinds)


def compare(
    case: SearchCase, valued: Valued, config: FinalistsConfig
) -> list[tuple[Bits, np.ndarray]]:
    """Ranks the policies of best value, and the uniform one, by `halve`.

    Args:
        case: the case, with the images to measure on.
        valued: what the strategy returned.
        config: how many policies, and how they are compared.

    Returns:
        Policies with their risk on each image [images], the best first.
    """
    candidates, limits = case.problem.candidates, case.problem.limits
    policies: list[Bits] = [bits for bits, _ in valued.ranked[: config.finalists]]
    if not policies:
        count = config.finalists
        policies = list(
            shortlist(
                valued.values, candidates, limits, count, valued.bonds, valued.spends
            )
        )
    uniform = uniform_bits(candidates, limits)
    if uniform is not None and uniform not in policies:
        policies = [*policies[: config.finalists - 1], uniform]
    images = config.finalist_images or default_images(case)
    # Policies fine-tuned on labels move away from the float model, so the divergence
    # from it would be no fair measure: the task risk is compared then.
    labelled = config.finalist_steps > 0 and case.data.first(1).labels is not None
    return halve(
        policies,
        Evaluator(case, images, labels=labelled),
        "task" if labelled else "divergence",
        config.finalist_steps,
        config.finalist_learning_rate,
        config.finalist_batch_size,
    )


def halve(
    policies: Sequence[Bits],
    evaluator: Evaluator,
    risk: str,
    steps: int = 0,
    learning_rate: float = 0.01,
    batch_size: int = 64,
) -> list[tuple[Bits, np.ndarray]]:
    """Compares policies in three rounds; the better half stays, with twice the effort.

    With steps, each policy is fine-tuned anew in each round, for a quarter, half and
    all of the steps, and measured on all images. Without, it is measured on a quarter,
    half and all of the images.

    Args:
        policies: one or more distinct policies.
        evaluator: measures them.
        risk: the column of `Measured` that is compared.
        steps: steps of fine-tuning in the last round; 0: no training.
        learning_rate: learning rate of fine-tuning; it falls to zero.
        batch_size: number of images in a step.

    Returns:
        The policies of the last round (two or more, if there are two), with their risk
        on each image [images], the best first.
    """
    left = list(policies)
    training = {"learning_rate": learning_rate, "batch_size": batch_size}
    effort = [
        (
            math.ceil(s * steps),
            evaluator.images if steps else math.ceil(s * evaluator.images),
        )
        for s in SHARES
    ]
    count = len(left)
    for own_steps, images in effort:
        evaluator.expect(count, own_steps, images, batch_size=batch_size)
        count = kept_of(count)
    ranked: list[tuple[Bits, np.ndarray]] = []
    for turn, (own_steps, images) in enumerate(effort):
        last = turn == len(effort) - 1
        measured = [
            evaluator.measure(
                bits, own_steps, images, **(training if steps else {})
            ).column(risk)
            for bits in left
        ]
        order = sorted(range(len(left)), key=lambda i: float(measured[i].mean()))
        kept = order if last else order[: kept_of(len(left))]
        ranked = [(left[i], measured[i]) for i in kept]
        left = [bits for bits, _ in ranked]
    return ranked


def kept_of(count: int) -> int:
    """Returns how many of `count` policies reach the next round: half, at least two."""
    return min(count, max(2, math.ceil(count / 2)))
