"""Channels pruned beside learned steps and ranges (DJPQ)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.gates import GatesConfig
from gmpq_tf.search.strategies.dq import CLIP, DQConfig
from gmpq_tf.search.strategies.training import Recipe, valued_by_training
from gmpq_tf.search.values import Valued


@dataclass(frozen=True)
class DJPQConfig(GatesConfig, DQConfig):
    """As `DQConfig`, and the channel gates."""

    def __post_init__(self) -> None:
        DQConfig.__post_init__(self)
        GatesConfig.__post_init__(self)

    def gates(self) -> GatesConfig:
        """The options of the gates alone."""
        return GatesConfig(
            **{f.name: getattr(self, f.name) for f in fields(GatesConfig)}
        )


def djpq(case: SearchCase, config: DJPQConfig) -> Valued:
    """Values choices as `dq` does, and says which channels are to be removed.

    Trained on `R_E + gamma mean log(1 + mu^2 / sigma^2) + strength relu(E - U)^2`:
    gates `z = mu + sigma eps` multiply channels, and the expected cost E counts those
    whose `log(sigma^2 / mu^2)` is below 0. The others are removed.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values, which have no measured error, and the channels that are kept.

    Raises:
        StrategyError: a budget of milliseconds, whose table cannot know the layers.
        GraphError: no channel can be removed.

    Source: Wang, Lu and Blankevoort, "Differentiable Joint Pruning and Quantization for
    Hardware Efficiency", ECCV 2020, whose formulas are not verified. Unlike there grids
    are uniform (exponent 1), and gates stand where channels are read.
    """
    for limit in case.problem.limits:
        if limit.resource == "latency_ms":
            raise StrategyError(
                "A budget of milliseconds needs times of the layers that will be left, "
                f"which nobody knows before. Received: budget={limit.said!r}. Give "
                "djpq another budget, and measure the pruned model by gmpq-latency."
            )
    formulation = Formulation("excess", gates=config.gates())
    recipe = Recipe("learned_grid", config.strength, formulation, clip=CLIP, adam=True)
    return valued_by_training(case, "djpq", config, recipe)
