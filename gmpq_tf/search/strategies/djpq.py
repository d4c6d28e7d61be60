"""DJPQ: channels are pruned while bit-widths are searched as by `dq`."""

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
    """Options of `DQConfig`, and of the channel gates."""

    def __post_init__(self) -> None:
        DQConfig.__post_init__(self)
        GatesConfig.__post_init__(self)

    def gates(self) -> GatesConfig:
        """Returns the options of the gates alone."""
        return GatesConfig(
            **{f.name: getattr(self, f.name) for f in fields(GatesConfig)}
        )


def djpq(case: SearchCase, config: DJPQConfig) -> Valued:
    """Values choices as `dq` does, and finds the channels to remove.

    The training loss is `R_E + gamma mean log(1 + mu^2 / sigma^2) + strength
    relu(E - U)^2`. Gates `z = mu + sigma eps` multiply channels; the expected cost E
    counts the open ones, whose `log(sigma^2 / mu^2)` is below 0. The others are
    removed.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: options of the training.

    Returns:
        The values, without standard errors, and the channels that are kept.

    Raises:
        StrategyError: there is a budget of milliseconds, whose latency table cannot
            hold the pruned layers.
        GraphError: no channel can be removed.

    Source: Wang, Lu and Blankevoort, "Differentiable Joint Pruning and Quantization for
    Hardware Efficiency", ECCV 2020; its formulas are not verified. Unlike there, grids
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
