"""GMPQ for Keras: mixed-precision policies that transfer, shipped as TFLite.

Names are loaded when first used, so that policies and costs need no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gmpq_tf.registration import register_with_keras
from gmpq_tf.version import __version__ as __version__

if TYPE_CHECKING:
    from gmpq_tf.cost import Cost, count_cost
    from gmpq_tf.policy import BitwidthPolicy, PolicyError
    from gmpq_tf.search import PolicySearch, TrainingProgress
    from gmpq_tf.space import SearchSpace
    from gmpq_tf.transform import (
        build_hypernet,
        calibrate,
        quantize_model,
        snap_biases,
    )

_HOMES = {
    "BitwidthPolicy": "gmpq_tf.policy",
    "PolicyError": "gmpq_tf.policy",
    "SearchSpace": "gmpq_tf.space",
    "Cost": "gmpq_tf.cost",
    "count_cost": "gmpq_tf.cost",
    "build_hypernet": "gmpq_tf.transform",
    "quantize_model": "gmpq_tf.transform",
    "calibrate": "gmpq_tf.transform",
    "snap_biases": "gmpq_tf.transform",
    "PolicySearch": "gmpq_tf.search",
    "TrainingProgress": "gmpq_tf.search",
}
__all__ = [
    "BitwidthPolicy",
    "Cost",
    "PolicyError",
    "PolicySearch",
    "SearchSpace",
    "TrainingProgress",
    "build_hypernet",
    "calibrate",
    "count_cost",
    "quantize_model",
    "snap_biases",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


register_with_keras()
