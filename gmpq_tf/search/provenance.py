"""The record that a policy keeps of its search."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION
from gmpq_tf.limits import records
from gmpq_tf.quantizers.input_quantizer import DEFAULT_INPUT_QUANTIZER
from gmpq_tf.quantizers.kernel_quantizer import DEFAULT_KERNEL_QUANTIZER
from gmpq_tf.search.formulation import PAPER
from gmpq_tf.search.values import Bits
from gmpq_tf.version import __version__

DEFAULT_QUANTIZERS = {
    "input_quantizer": DEFAULT_INPUT_QUANTIZER,
    "kernel_quantizer": DEFAULT_KERNEL_QUANTIZER,
}


def made_by_search(search: Any, bits: Bits) -> dict[str, Any]:
    """Strategy, options, quantizers and training of a `PolicySearch`, as plain JSON.

    Args:
        search: the trained search.
        bits: the policy that is read from it.
    """
    config: dict[str, Any] = {**vars(search.risk), "space": search.space.to_config()}
    if search.relaxation != DEFAULT_RELAXATION:
        config["relaxation"] = search.relaxation
    if search.formulation != PAPER:
        config["formulation"] = search.formulation.to_config()
    if search.risk.budget is not None:
        config["limits"] = records(search.limits, bits)
    return {
        "strategy": "gmpq" if search.risk.eta else "edmips",
        "config": config,
        "quantizers": {**DEFAULT_QUANTIZERS, **search.quantizers},
        "training": _training_record(search),
        "versions": {"gmpq-tf": __version__},
    }


def _training_record(search: Any) -> dict[str, Any]:
    """Optimizers and numbers of steps and epochs, as far as this process knows them."""
    if not search.compiled:
        return {}
    record: dict[str, Any] = json.loads(search.optimizers_described)
    record["steps"] = int(np.asarray(search.optimizer.iterations))
    if search.epochs_trained:
        record["epochs"] = search.epochs_trained
    return record
