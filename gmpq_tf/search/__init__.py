"""Bit-width search: differentiable, by tables, at random."""

from gmpq_tf.budget import BudgetError
from gmpq_tf.progress import TrainingProgress
from gmpq_tf.search.callbacks import (
    ImportanceLearningRateScheduler,
    StopOnDivergence,
    TemperatureScheduler,
)
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.distill import Distiller
from gmpq_tf.search.errors import DivergenceError, StrategyError
from gmpq_tf.search.journal import JournalError
from gmpq_tf.search.knapsack import most_probable_bits
from gmpq_tf.search.policies import SearchResult, search_policy
from gmpq_tf.search.policy_search import PolicySearch
from gmpq_tf.search.purposes import PURPOSES, Purpose
from gmpq_tf.search.readouts import READOUTS
from gmpq_tf.search.strategies import STRATEGIES, Strategy

__all__ = [
    "PURPOSES",
    "READOUTS",
    "STRATEGIES",
    "BudgetError",
    "Distiller",
    "DivergenceError",
    "ImportanceLearningRateScheduler",
    "JournalError",
    "PolicySearch",
    "Purpose",
    "RiskConfig",
    "SearchResult",
    "StopOnDivergence",
    "Strategy",
    "StrategyError",
    "TemperatureScheduler",
    "TrainingProgress",
    "most_probable_bits",
    "search_policy",
]
