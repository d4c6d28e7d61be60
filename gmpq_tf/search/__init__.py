"""Differentiable bit-width search."""

from gmpq_tf.budget import BudgetError
from gmpq_tf.progress import TrainingProgress
from gmpq_tf.search.callbacks import (
    ImportanceLearningRateScheduler,
    StopOnDivergence,
    TemperatureScheduler,
)
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.distill import Distiller
from gmpq_tf.search.errors import DivergenceError
from gmpq_tf.search.knapsack import most_probable_bits
from gmpq_tf.search.policy_search import PolicySearch

__all__ = [
    "BudgetError",
    "Distiller",
    "DivergenceError",
    "ImportanceLearningRateScheduler",
    "PolicySearch",
    "RiskConfig",
    "StopOnDivergence",
    "TemperatureScheduler",
    "TrainingProgress",
    "most_probable_bits",
]
