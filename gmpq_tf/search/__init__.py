"""Differentiable bit-width search."""

from gmpq_tf.search.budget import BudgetError, most_probable_bits
from gmpq_tf.search.callbacks import (
    ImportanceLearningRateScheduler,
    StopOnDivergence,
    TemperatureScheduler,
)
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.errors import DivergenceError
from gmpq_tf.search.policy_search import PolicySearch
from gmpq_tf.search.progress import TrainingProgress

__all__ = [
    "BudgetError",
    "DivergenceError",
    "ImportanceLearningRateScheduler",
    "PolicySearch",
    "RiskConfig",
    "StopOnDivergence",
    "TemperatureScheduler",
    "TrainingProgress",
    "most_probable_bits",
]
