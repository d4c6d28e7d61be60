"""GMPQ for Keras: mixed-precision policies that transfer, shipped as TFLite.

Names are imported when they are first used, so that policies and costs need no
TensorFlow. `keras.saving.load_model` finds the layers of this package if `gmpq_tf` was
imported, or one of its names used, after `keras`; `gmpq.load_model` always finds them.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from gmpq_tf.version import __version__ as __version__

if TYPE_CHECKING:
    from gmpq_tf.compression import Compressed as Compressed
    from gmpq_tf.compression import compress as compress
    from gmpq_tf.cost import Cost as Cost
    from gmpq_tf.cost import count_cost as count_cost
    from gmpq_tf.export.tflite import integer_twin as integer_twin
    from gmpq_tf.models import load_model as load_model
    from gmpq_tf.policy import BitwidthPolicy as BitwidthPolicy
    from gmpq_tf.policy import PolicyError as PolicyError
    from gmpq_tf.progress import TrainingProgress as TrainingProgress
    from gmpq_tf.search import PolicySearch as PolicySearch
    from gmpq_tf.search import SearchResult as SearchResult
    from gmpq_tf.search import search_policy as search_policy
    from gmpq_tf.space import SearchSpace as SearchSpace
    from gmpq_tf.transform import build_hypernet as build_hypernet
    from gmpq_tf.transform import calibrate as calibrate
    from gmpq_tf.transform import prune_channels as prune_channels
    from gmpq_tf.transform import quantize_model as quantize_model
    from gmpq_tf.transform import snap_biases as snap_biases

_HOMES = {
    "BitwidthPolicy": "policy",
    "Compressed": "compression",
    "Cost": "cost",
    "PolicyError": "policy",
    "PolicySearch": "search",
    "SearchResult": "search",
    "SearchSpace": "space",
    "TrainingProgress": "progress",
    "build_hypernet": "transform",
    "calibrate": "transform",
    "compress": "compression",
    "count_cost": "cost",
    "integer_twin": "export.tflite",
    "load_model": "models",
    "prune_channels": "transform",
    "quantize_model": "transform",
    "search_policy": "search",
    "snap_biases": "transform",
}
__all__ = list(_HOMES)


def _register_classes() -> None:
    """Imports every module that defines a Keras class, if Keras is in use."""
    if sys.modules.get("keras") is not None:
        importlib.import_module("gmpq_tf.search")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gmpq_tf.{_HOMES[name]}"), name)
    _register_classes()
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


_register_classes()
