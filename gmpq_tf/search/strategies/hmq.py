"""HMQ: one rounding on the expected grid of all bit-widths and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import keras

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number, check_whole
from gmpq_tf.search.complexity import stage_of
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.strategies.training import (
    GuidedConfig,
    Recipe,
    valued_by_training,
)
from gmpq_tf.search.values import Valued

COLDEST = 0.5  # temperature at the end of a stage; it starts from 1


@dataclass(frozen=True)
class HMQConfig(GuidedConfig):
    """Options of `GuidedConfig`, and those of the penalty.

    Args:
        importance_learning_rate: Learning rate of the importances. It does not fall,
            because they must still follow the last stage, which asks for the whole
            budget.
        gamma: Weight of the squared shortfall of compression.
        stages: Number of equal parts of the epochs, over which the budget tightens; in
            each the temperature of the draws falls from 1 to 0.5.
    """

    importance_learning_rate: float = 0.03
    gamma: float = 32.0
    stages: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma, 0.0, exclusive=True)
        check_whole("stages", self.stages, 1)


class TemperatureCycles(keras.callbacks.Callback):
    """Lowers the temperature of the draws from 1 to 0.5 in each stage.

    Args:
        epochs: epochs of the whole search.
        stages: number of equal stages, those in which the budget tightens.
    """

    def __init__(self, epochs: int, stages: int) -> None:
        super().__init__()
        self.stages = [stage_of(epoch, epochs, stages) for epoch in range(epochs)]

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Sets the temperature of the epoch."""
        own = self.stages[epoch]
        place = epoch - self.stages.index(own)
        length = self.stages.count(own)
        self.model.set_temperature(COLDEST ** (place / max(length - 1, 1)))


def hmq(case: SearchCase, config: HMQConfig) -> Valued:
    """Values choices by joint importances of bit-widths and thresholds.

    Pairs of both are drawn by Gumbel-softmax, and a tensor is rounded once, with the
    expected step and threshold. The penalty `gamma relu((target - r) / target)^2` asks
    for a compression r whose target rises stage by stage. The probability of a
    bit-width is the sum over its thresholds.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors.

    Source: Habi, Jennings and Netzer, "HMQ: Hardware Friendly Mixed Precision
    Quantization Block for CNNs", ECCV 2020. Unlike there, activation bits are searched
    too, any cost can be compressed, a quantizer's fitted range is one threshold, and
    the importances are trained by Adam, with three times the learning rate of RAdam
    there, because searches are shorter.
    """
    formulation = Formulation("compression", stages=config.stages)
    cycles = TemperatureCycles(config.epochs, config.stages)
    recipe = Recipe(
        "thresholds", config.gamma, formulation, (cycles,), adam=True, decays=False
    )
    return valued_by_training(case, "hmq", config, recipe)
