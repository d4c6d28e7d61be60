"""SSPS: one bit-width is drawn per step, and the surest tensors are decided first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import keras
import numpy as np

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.strategies.training import (
    GuidedConfig,
    Recipe,
    valued_by_training,
)
from gmpq_tf.search.values import Valued


@dataclass(frozen=True)
class SSPSConfig(GuidedConfig):
    """Options of `GuidedConfig`, and when tensors are decided.

    Args:
        zeta: Initial weight of the complexity risk.
        undecided: Share of the epochs before the first tensor is decided.
    """

    zeta: float = RiskConfig.zeta
    undecided: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("zeta", self.zeta, 0.0)
        check_number("undecided", self.undecided, 0.0)
        if self.undecided > 1:
            raise StrategyError(
                "undecided must be at most 1, which is all epochs. "
                f"Received: undecided={self.undecided!r}."
            )


class Deciding(keras.callbacks.Callback):
    """Fixes the most certain tensors to their most probable bit-width, some per epoch.

    All tensors are decided one epoch before the end. Decisions are stored only in the
    importances, so that an interrupted search can be resumed.

    Args:
        epochs: epochs of the whole search.
        undecided: share of the epochs before the first tensor is decided.
    """

    def __init__(self, epochs: int, undecided: float) -> None:
        super().__init__()
        self.epochs, self.first = epochs, math.ceil(undecided * epochs)

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Decides an equal share of the undecided tensors."""
        if epoch < self.first:
            return
        open_ = []
        for layer in self.model.mixed_layers():
            for side in (layer.kernel_branches, layer.input_branches):
                pi = np.asarray(side.probabilities())
                if pi.max() < 1:
                    open_.append((pi.max(), int(np.argmax(pi)), side))
        open_.sort(key=lambda each: -each[0])
        count = math.ceil(len(open_) / max(self.epochs - epoch, 1))
        for _, branch, side in open_[:count]:
            side.choose(branch)


def ssps(case: SearchCase, config: SSPSConfig) -> Valued:
    """Values choices by importances, of which the most certain are decided first.

    Each step draws one bit-width per tensor. In every epoch the most certain tensors
    are fixed, and the complexity risk distributes the rest of the budget over the
    others.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors.

    Source: Sun et al., "Effective and Fast: A Novel Sequential Single Path Search for
    Mixed-Precision Quantization", 2021, by its abstract. Unlike there, the weight of
    the cost is adjusted to keep the budget, and weights and activations are decided
    separately.
    """
    deciding = Deciding(config.epochs, config.undecided)
    recipe = Recipe("sampled", config.zeta, callbacks=(deciding,))
    return valued_by_training(case, "ssps", config, recipe)
