"""Values each choice by the measured risk that it alone adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import (
    check_attributable,
    check_measure,
    check_number,
    check_whole,
)
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.deltas import changes, default_images, delta_table
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.values import Valued

__all__ = ["LossDeltaConfig", "changes", "default_images", "loss_delta"]


@dataclass(frozen=True)
class LossDeltaConfig:
    """How the risk added by each choice is measured.

    Args:
        images: Images it is measured on; none: as many as 3e12 multiply-adds of the
            float model allow, 32 at least and 1024 at most.
        measure: What is measured: divergence (of the outputs from the float model's,
            without labels), or task (cross-entropy of the labels, which needs more
            images for the same certainty).
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

    `value(b) = -(risk(one tensor at b bits) - risk(all at 8))`, made at most 0 and
    non-decreasing in the bits, because the opposite can only be chance. Pinned layers
    keep their bits; a kernel quantizer that does not offer 8 bits takes its largest
    candidate instead. With eta the risk is `R_E + eta R_G` (section 3.3 of the GMPQ
    paper, for a search without gradients). Unlike in eq. 8, p is fixed, so that choices
    can be compared.

    Args:
        case: the float model, its choices and images.
        config: images, and what is measured.

    Returns:
        The values, with samples per image and a column for each risk.
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
    columns: dict[str, float] = {config.measure: 1.0}
    if attribution:
        columns |= {"attribution": config.eta, "rank_distance": 0.0}
    candidates = case.problem.candidates
    return delta_table(evaluator, case.context(), candidates, columns, most=0.0)
