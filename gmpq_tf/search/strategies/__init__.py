"""The search strategies: one file each, one line in `STRATEGIES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.strategies.bayesian_bits import (
    BayesianBitsConfig,
    bayesian_bits,
)
from gmpq_tf.search.strategies.bp_nas import BPNASConfig, bp_nas
from gmpq_tf.search.strategies.clado import CLADOConfig, clado
from gmpq_tf.search.strategies.djpq import DJPQConfig, djpq
from gmpq_tf.search.strategies.dq import DQConfig, dq
from gmpq_tf.search.strategies.evolution import EvolutionConfig, evolution
from gmpq_tf.search.strategies.fisher import FisherConfig, fisher
from gmpq_tf.search.strategies.fracbits import FracBitsConfig, fracbits
from gmpq_tf.search.strategies.gradient import EdMIPSConfig, GMPQConfig, edmips, gmpq
from gmpq_tf.search.strategies.haq import HAQConfig, haq
from gmpq_tf.search.strategies.hawq import HAWQConfig, hawq
from gmpq_tf.search.strategies.hmq import HMQConfig, hmq
from gmpq_tf.search.strategies.limpq import LIMPQConfig, limpq
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig, loss_delta
from gmpq_tf.search.strategies.ompq import OMPQConfig, ompq
from gmpq_tf.search.strategies.one_shot import OneShotConfig, one_shot
from gmpq_tf.search.strategies.random_draws import RandomConfig, random_draws
from gmpq_tf.search.strategies.sdq import sdq
from gmpq_tf.search.strategies.ssps import SSPSConfig, ssps
from gmpq_tf.search.strategies.topological import (
    TopologicalEntropyConfig,
    topological_entropy,
)
from gmpq_tf.search.values import Valued


@dataclass(frozen=True)
class Strategy:
    """A row of `STRATEGIES`.

    Args:
        config: dataclass of its options: plain values with defaults, checked when it is
            made.
        value: (case, config) -> the values of all choices of the case. Slow steps other
            than training by `case.fit` must go through `case.journal`, so that an
            interrupted search does not repeat them.
        gradient: whether it trains a hypernet by `case.fit`.
    """

    config: type
    value: Callable[[SearchCase, Any], Valued]
    gradient: bool = False


STRATEGIES: dict[str, Strategy] = {
    "gmpq": Strategy(GMPQConfig, gmpq, gradient=True),
    "edmips": Strategy(EdMIPSConfig, edmips, gradient=True),
    "bp_nas": Strategy(BPNASConfig, bp_nas, gradient=True),
    "hmq": Strategy(HMQConfig, hmq, gradient=True),
    "dq": Strategy(DQConfig, dq, gradient=True),
    "djpq": Strategy(DJPQConfig, djpq, gradient=True),
    "fracbits": Strategy(FracBitsConfig, fracbits, gradient=True),
    "sdq": Strategy(DQConfig, sdq, gradient=True),
    "ssps": Strategy(SSPSConfig, ssps, gradient=True),
    "bayesian_bits": Strategy(BayesianBitsConfig, bayesian_bits, gradient=True),
    "loss_delta": Strategy(LossDeltaConfig, loss_delta),
    "one_shot": Strategy(OneShotConfig, one_shot),
    "limpq": Strategy(LIMPQConfig, limpq),
    "hawq": Strategy(HAWQConfig, hawq),
    "fisher": Strategy(FisherConfig, fisher),
    "clado": Strategy(CLADOConfig, clado),
    "ompq": Strategy(OMPQConfig, ompq),
    "topological_entropy": Strategy(TopologicalEntropyConfig, topological_entropy),
    "haq": Strategy(HAQConfig, haq),
    "evolution": Strategy(EvolutionConfig, evolution),
    "random": Strategy(RandomConfig, random_draws),
}

__all__ = ["STRATEGIES", "Strategy"]
