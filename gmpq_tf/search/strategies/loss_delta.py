"""Value of a choice: the risk that it alone adds, measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gmpq_tf.budget import Candidates
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import (
    check_attributable,
    check_measure,
    check_number,
    check_whole,
)
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.evaluator import Evaluator, Measured
from gmpq_tf.search.values import Bits, Samples, Valued, Values

# Multiply-adds that a table takes by default, and between how many images that is.
MACS, LEAST_IMAGES, MOST_IMAGES = 3e12, 32, 1024


@dataclass(frozen=True)
class LossDeltaConfig:
    """How the risk added by each choice is measured.

    Args:
        images: Images it is measured on; none: as many as 3e12 multiply-adds of the
            float model allow, 32 at least and 1024 at most.
        measure: What is measured: divergence (of the outputs from the float model's,
            without labels), or task (cross-entropy of the labels, which says less of as
            many images).
        eta: Weight of the generalization risk in the values; above 0 attribution is
            measured too.
        attribution: Measure the generalization risk and the rank distance of each
            choice as further columns, whatever eta is.
        p: Exponent of the float model's attribution map, the same for all choices.
        top_k: Pixels of the float model's map that count, the highest first.
        statistics_images: Images on which the statistics of BatchNormalization are
            measured anew for each choice; 0 keeps those of the float model.
    """

    images: int | None = None
    measure: Literal["divergence", "task"] = "divergence"
    eta: float = 0.0
    attribution: bool = False
    p: float = 1.0
    top_k: int = 1000
    statistics_images: int = 0

    def __post_init__(self) -> None:
        if self.images is not None:
            check_whole("images", self.images, 1)
        check_whole("statistics_images", self.statistics_images, 0)
        check_measure(self.measure)
        check_number("eta", self.eta, 0.0)
        RiskConfig(p=self.p, top_k=self.top_k)


def loss_delta(case: SearchCase, config: LossDeltaConfig) -> Valued:
    """Values every choice by the risk it adds where all other tensors have 8 bits.

    `value(b) = -(risk(one tensor at b bits) - risk(all at 8))`, at most 0 and never
    more with fewer bits: what grows with the bits is chance. Pinned layers stay as they
    are; a kernel quantizer without 8 bits takes the most candidates. With eta the risk
    is `R_E + eta R_G` (section 3.3 of the GMPQ paper, for a search without gradients).
    Unlike in eq. 8 p is fixed, so that choices can be compared.

    Args:
        case: the float model, its choices and images.
        config: what is measured.

    Returns:
        The values, with samples and a column for each risk.
    """
    attribution = config.attribution or config.eta > 0
    if attribution:
        check_attributable(case.model)
    evaluator = Evaluator(
        case,
        config.images or default_images(case),
        attribution,
        RiskConfig(p=config.p, top_k=config.top_k),
        config.statistics_images,
        labels=config.measure == "task",
    )
    risk = config.measure
    candidates = case.problem.candidates
    context = case.context()
    base = evaluator.measure(context)
    columns: dict[str, float] = {risk: 1.0}
    if attribution:
        columns |= {"attribution": config.eta, "rank_distance": 0.0}
    found: dict = {column: {n: ({}, {}) for n in candidates} for column in columns}
    history = [_record("", context, base, risk)]
    for name, which, width, bits in changes(context, candidates):
        measured = evaluator.measure(bits)
        for column in columns:
            added = measured.column(column) - base.column(column)
            found[column][name][which][width] = -added
        history.append(_record(f"{name} {'WA'[which]}{width}", bits, measured, risk))
    samples: dict[str, Any] = {
        name: tuple(
            {
                width: sum(columns[c] * found[c][name][which][width] for c in columns)
                for width in found[risk][name][which]
            }
            for which in (0, 1)
        )
        for name in candidates
    }
    return Valued(
        _monotone(samples),
        samples,
        {_NAMES[c]: _means(found[c]) for c in columns},
        history=tuple(history),
    )


_NAMES = {
    "task": "task",
    "divergence": "divergence",
    "attribution": "generalization",
    "rank_distance": "rank_distance",
}


def default_images(case: SearchCase) -> int:
    """As many images as a table's share of computing allows."""
    context = case.context()
    changed = [bits for *_, bits in changes(context, case.problem.candidates)]
    evaluations = 1 + sum(bits != context for bits in changed)
    macs = case.problem.full_bit_ops() / 1024  # at 32 x 32 bits
    images = int(MACS / max(evaluations * macs, 1.0))
    return min(max(images, LEAST_IMAGES), MOST_IMAGES)


def changes(
    context: Bits, candidates: Candidates
) -> Iterator[tuple[str, int, int, Bits]]:
    """Every policy that differs from one in one tensor, and the one itself.

    Yields:
        (layer, 0 for its weights or 1 for its activations, bit-width, policy).
    """
    for name, pair in candidates.items():
        for which in (0, 1):
            for width in pair[which]:
                own = list(context[name])
                own[which] = width
                yield name, which, width, {**context, name: (own[0], own[1])}


def _monotone(samples: Samples) -> Values:
    """Means of samples, at most 0 and never more with fewer bits."""
    values: dict[str, Any] = {}
    for name, pair in samples.items():
        sides = []
        for side in pair:
            worst, own = 0.0, {}
            for width in sorted(side, reverse=True):
                worst = min(worst, float(np.mean(side[width])))
                own[width] = worst
            sides.append({width: own[width] for width in side})
        values[name] = tuple(sides)
    return values


def _means(samples: Samples) -> Values:
    means: dict[str, Any] = {
        name: tuple({w: float(np.mean(v)) for w, v in side.items()} for side in pair)
        for name, pair in samples.items()
    }
    return means


def _record(change: str, bits: Bits, measured: Measured, risk: str) -> dict:
    return {
        "change": change,
        "risk": float(measured.column(risk).mean()),
        "accuracy": measured.accuracy,
        "divergence": float(measured.divergence.mean()),
    }
