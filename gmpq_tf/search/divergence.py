"""Detect that a search has diverged, and refuse to read a policy from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from gmpq_tf.metric_names import TOTAL
from gmpq_tf.search.errors import DivergenceError

REMEDY = (
    "Search again from a trained model, with smaller learning rates, or with "
    "optimizers that have clipnorm=1.0; or load a checkpoint written before."
)
NAMED = 3  # how many variables a message lists
LEAST_TEMPERATURE = 1e-6  # importances up to 1e32 stay finite when divided by it


class WatchedMean(keras.metrics.Mean):
    """A mean that remembers across epochs whether a value was not finite.

    A NaN loss need not make the gradients NaN: code compiled by XLA may drop those of
    one image, and then nothing else shows it. The memory is not saved with the model.

    Args:
        **kwargs: arguments of `keras.metrics.Mean`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.broken = self.add_variable(
            shape=(), initializer="zeros", dtype="float32", name="broken"
        )

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Adds values, any shape, and counts the call if one is not finite."""
        super().update_state(values, sample_weight)
        finite = keras.ops.all(keras.ops.isfinite(values))
        self.broken.assign_add(1.0 - keras.ops.cast(finite, "float32"))

    def reset_state(self) -> None:
        """Starts a new mean; the memory of values that were not finite is kept."""
        for variable in (self.total, self.count):
            variable.assign(0.0)

    def forget(self) -> None:
        """Clears the memory: for a new training, or loaded weights."""
        self.broken.assign(0.0)


def check_converged(search: Any) -> None:
    """Refuses a search whose state is not finite, whatever its callbacks noticed.

    Every variable is checked, not only the importances: with weights or ranges that are
    NaN the importances mean nothing, even while they are still finite.

    Args:
        search: a `PolicySearch`; its hypernet, zeta and loss are checked.

    Raises:
        DivergenceError: an importance, branch probability, weight, statistic, range or
            step of the hypernet, or zeta, or the loss of a step since the last `fit`
            began is NaN or infinite.
    """
    _check_importances(search.mixed_layers())
    broken = not_finite([*search.hypernet.weights, search.zeta])
    if broken:
        raise DivergenceError(
            "A policy needs a search that has not diverged. "
            f"Received: not finite: {listed(broken)}. {REMEDY}"
        )
    steps = int(keras.ops.convert_to_numpy(search.risk_metrics[TOTAL].broken))
    if steps:
        raise DivergenceError(
            "A policy needs a search whose losses were finite. "
            f"Received: {steps} steps of the last fit with a loss of NaN or infinity. "
            f"{REMEDY} StopOnDivergence stops at such a step and names the risk."
        )


def nan_of_labels(labels: Any) -> Any:
    """0, or NaN if a label is not finite (cast to an integer it would look valid).

    Args:
        labels: tensors of any type, nested; or None.
    """
    finite = [
        keras.ops.all(keras.ops.isfinite(each))
        for each in keras.tree.flatten(labels)
        if each is not None and keras.backend.is_float_dtype(each.dtype)
    ]
    if not finite:
        return 0.0
    return keras.ops.where(keras.ops.all(keras.ops.stack(finite)), 0.0, math.nan)


def not_finite(variables: Iterable[keras.Variable]) -> list[str]:
    """Paths of the variables that hold NaN or infinity."""
    return [v.path for v in variables if not _is_finite(v)]


def listed(paths: list[str]) -> str:
    """Text with the first three paths, and how many more there are."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + more


def check_temperature(value: float) -> None:
    """Refuses a temperature at which branch probabilities cannot be computed.

    Raises:
        ValueError: it is below 1e-6, NaN or infinite.
    """
    if not LEAST_TEMPERATURE <= value < math.inf:
        raise ValueError(
            f"A temperature must be finite and at least {LEAST_TEMPERATURE:g}. "
            f"Received: temperature={value!r}. Pass 1 for the paper's softmax, or 0.01 "
            "for one branch only."
        )


def _check_importances(layers: Iterable[Any]) -> None:
    for layer in layers:
        pair = [np.asarray(p) for p in layer.branch_probabilities()]
        importances = layer.kernel_importance, layer.input_importance
        if not all(map(_is_finite, [*pair, *importances])):
            raise DivergenceError(
                "A policy needs finite importances. "
                f"Received: layer={layer.name!r} with probabilities {pair}. {REMEDY}"
            )


def _is_finite(value: Any) -> bool:
    return bool(np.isfinite(keras.ops.convert_to_numpy(value)).all())
