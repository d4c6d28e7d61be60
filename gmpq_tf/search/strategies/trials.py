"""Shared by strategies that try whole policies: options, and measuring a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gmpq_tf.bits import LayerPair
from gmpq_tf.search.attribution_risk import exponent
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_attributable, check_number, check_whole
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.deltas import default_images
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.strategies.one_shot import start_of
from gmpq_tf.search.strategies.random_draws import check_budgeted
from gmpq_tf.search.values import Bits, Valued, only
from gmpq_tf.spelling import suggest

ACCURACY = "accuracy"
KEPT = 16  # best policies, from which finalists may be taken


@dataclass(frozen=True)
class TrialsConfig:
    """How whole policies are tried.

    Args:
        trials: Policies measured, the uniform one of the budget first.
        images: Number of first images, on which they are measured; fine-tuning uses the
            later ones. None: as many as loss_delta takes.
        measure: accuracy (the share of wrong decisions), task (cross-entropy of the
            labels), or divergence (of the outputs from the float model's, without
            labels).
        steps: Steps of fine-tuning before each is measured.
        learning_rate: Learning rate of fine-tuning; it falls to zero.
        batch_size_of_steps: Images per step of fine-tuning.
        kappa: Weight of the generalization risk relative to the uniform policy's, which
            is added to what is measured; above 0 attribution is measured too.
        top_k: Pixels of the float model's map that count, the highest first.
    """

    trials: int = 200
    images: int | None = None
    measure: str = "divergence"
    steps: int = 0
    learning_rate: float = 0.01
    batch_size_of_steps: int = 64
    kappa: float = 0.0
    top_k: int = RiskConfig.top_k

    measures: ClassVar[tuple[str, ...]] = (ACCURACY, "task", "divergence")

    def __post_init__(self) -> None:
        check_whole("trials", self.trials, 2)
        if self.images is not None:
            check_whole("images", self.images, 1)
        if self.measure not in self.measures:
            raise StrategyError(
                f"measure must be one of {', '.join(self.measures)}. "
                f"Received: measure={self.measure!r}. "
                f"{suggest(str(self.measure), self.measures)}"
            )
        check_whole("steps", self.steps, 0)
        check_number("learning_rate", self.learning_rate, 0.0, exclusive=True)
        check_whole("batch_size_of_steps", self.batch_size_of_steps, 1)
        check_number("kappa", self.kappa, 0.0)
        RiskConfig(top_k=self.top_k)


class Trials:
    """Measures policies, each once, and remembers them.

    Args:
        case: the float model, its choices, budgets and images.
        config: number of trials, images, and what is measured.

    Raises:
        StrategyError: there is no budget, or labels that are needed are missing.
        GraphError: kappa is above 0, and the model has no feature map.
    """

    def __init__(self, case: SearchCase, config: TrialsConfig) -> None:
        check_budgeted(case)
        self.case, self.config = case, config
        self._check_labels()
        if config.kappa:
            check_attributable(case.model)
        self.start: Bits = start_of(case)
        bits = [LayerPair(float(w), float(a)) for w, a in self.start.values()]
        # All policies share one exponent p, the uniform policy's, so that their risks
        # can be compared.
        p = float(exponent(RiskConfig(), bits))
        self.evaluator = Evaluator(
            case,
            config.images or default_images(case),
            attribution=config.kappa > 0,
            risk=RiskConfig(p=p, top_k=config.top_k),
            labels=config.measure != "divergence",
        )
        self._check_decides()
        self.tried: dict[tuple, tuple[Bits, np.ndarray]] = {}
        self._training: dict[str, Any] = {}
        if config.steps:
            self._training["learning_rate"] = config.learning_rate
            self._training["batch_size"] = config.batch_size_of_steps
        self.evaluator.expect(config.trials, config.steps, **self._training)
        self._scale = 0.0  # mean R_G of the first policy measured; 0: not known yet
        self.reference = float(self.risk(self.start).mean())

    @property
    def left(self) -> int:
        """Number of further policies that may be measured."""
        return self.config.trials - len(self.tried)

    def knows(self, bits: Bits) -> bool:
        """Whether a policy was measured."""
        return tuple(bits.values()) in self.tried

    def risk(self, bits: Bits) -> np.ndarray:
        """Measures a policy: risk of each image [images], less is better."""
        key = tuple(bits.values())
        if key not in self.tried:
            self.tried[key] = (dict(bits), self._measured(bits))
        return self.tried[key][1]

    def best(self) -> Valued:
        """Returns values by which the best policy is chosen, and the ranking."""
        ranked = sorted(self.tried.values(), key=lambda each: float(each[1].mean()))
        history = [
            {
                "policy": {n: list(own) for n, own in bits.items()},
                "risk": float(r.mean()),
            }
            for bits, r in self.tried.values()
        ]
        kept = tuple(ranked[:KEPT])
        return Valued(only(kept[0][0]), ranked=kept, history=tuple(history))

    def _measured(self, bits: Bits) -> np.ndarray:
        config = self.config
        found = self.evaluator.measure(bits, config.steps, **self._training)
        if config.measure == ACCURACY:
            risk = 1.0 - found.column("right")
        else:
            risk = found.column(config.measure)
        if config.kappa:
            attribution = found.column("attribution")
            self._scale = self._scale or float(attribution.mean()) or 1.0
            risk = risk + config.kappa * attribution / self._scale
        return risk

    def _check_labels(self) -> None:
        measure = self.config.measure
        if measure != "divergence" and self.case.data.first(1).labels is None:
            raise StrategyError(
                f"measure={measure!r} needs labels. Received: a data set of inputs "
                "alone. Pass (inputs, labels), or measure='divergence', which compares "
                "outputs with the float model's."
            )

    def _check_decides(self) -> None:
        if self.config.measure == ACCURACY and not self.evaluator.judge.decides:
            raise StrategyError(
                "Accuracy is of models that decide. Received: measure='accuracy' and "
                f"{self.case.model.name!r}, whose outputs are numbers. Pass "
                "measure='task' or 'divergence'."
            )
