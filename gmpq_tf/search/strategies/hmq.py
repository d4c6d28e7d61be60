"""Bits and thresholds in one expected grid (HMQ)."""

from __future__ import annotations

from dataclasses import dataclass

import keras

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number, check_whole
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
    """As `GuidedConfig`, and the penalty.

    Args:
        importance_learning_rate: Of the importances, throughout: the last stage asks
            for the whole budget, and must be followed.
        gamma: Weight of the compression that is missing.
        stages: Parts of the epochs over which the budget tightens; in each the
            temperature of the draws falls from 1 to a half.
    """

    importance_learning_rate: float = 0.03
    gamma: float = 32.0
    stages: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma, 0.0, exclusive=True)
        check_whole("stages", self.stages, 1)


class TemperatureCycles(keras.callbacks.Callback):
    """Cools draws from 1 to a half over each of some equal parts of the epochs.

    Args:
        epochs: of the whole search.
        stages: how many parts.
    """

    def __init__(self, epochs: int, stages: int) -> None:
        super().__init__()
        self.length = max(epochs // stages, 1)

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Set the temperature of the epoch."""
        place = epoch % self.length / max(self.length - 1, 1)
        self.model.set_temperature(COLDEST**place)


def hmq(case: SearchCase, config: HMQConfig) -> Valued:
    """Values choices by importances of bits and thresholds together.

    Both are drawn by Gumbel-softmax, a tensor is rounded once, on the expected step
    within the expected threshold, and `gamma relu((target - r) / target)^2` asks for
    compression `r`, stage by stage. A bit-width is as probable as its thresholds
    together.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values; importances have no measured error.

    Source: Habi, Jennings and Netzer, "HMQ: Hardware Friendly Mixed Precision
    Quantization Block for CNNs", ECCV 2020. Unlike there activation bits are searched
    too, any cost is compressed, a quantizer's fitted range is one threshold, and Adam
    trains the importances, three times as fast as RAdam there, as searches are shorter.
    """
    formulation = Formulation("compression", stages=config.stages)
    cycles = TemperatureCycles(config.epochs, config.stages)
    recipe = Recipe(
        "thresholds", config.gamma, formulation, (cycles,), adam=True, decays=False
    )
    return valued_by_training(case, "hmq", config, recipe)
