"""Checks of the two optimizers of a search, and their record in a policy."""

from __future__ import annotations

import json
from typing import Any

import keras


def check_optimizers(weights: Any, importances: Any) -> None:
    """Refuses optimizers with which a search would not train correctly.

    Args:
        weights: the optimizer of the hypernet's weights and ranges.
        importances: the optimizer of the branch importances.

    Raises:
        ValueError: both are the same object; one divides gradients by a loss scale; or
            one replaces variables by their moving averages.
    """
    if weights is importances:
        raise ValueError(
            "A search needs two optimizers, each with variables of its own. Received: "
            f"one {type(weights).__name__} as optimizer and importance_optimizer. Make "
            "two of them, or pass names."
        )
    named = {"optimizer": weights, "importance_optimizer": importances}
    for name, optimizer in named.items():
        scaling = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if scaling or getattr(optimizer, "loss_scale_factor", None) is not None:
            raise ValueError(
                "The loss of a search is not scaled: two optimizers share it, and the "
                "gradients inside attribution maps would not be scaled with it. "
                f"Received: {name}={type(optimizer).__name__} with a loss scale. Pass "
                "its inner optimizer, without loss_scale_factor; use float32 or "
                "mixed_bfloat16, which need no scale."
            )
        if getattr(optimizer, "use_ema", False):
            raise ValueError(
                "The optimizers of a search must keep what they train: averages would "
                "replace it after the statistics and the budget were measured without "
                f"them. Received: {name}={type(optimizer).__name__} with use_ema=True. "
                "Pass use_ema=False, and let the learning rate fall instead."
            )


def check_precision(model: keras.Model) -> None:
    """Refuses layers that compute in float16.

    Args:
        model: the hypernet.

    Raises:
        ValueError: a layer does: its gradients would underflow, since a search does not
            scale the loss.
    """
    names = [
        layer.name
        for layer in model._flatten_layers(include_self=False)
        if layer.compute_dtype == "float16"
    ]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            "A search must not compute in float16, in which small gradients become "
            f"zero. Received: layers of float16: {', '.join(names[:3])}{more}. Call "
            "keras.config.set_dtype_policy('float32') (or 'mixed_bfloat16'), set "
            "layer.dtype_policy of every layer of the model to the same, and make the "
            "search anew."
        )


def describe_optimizer(optimizer: Any) -> dict[str, Any]:
    """Class and options of an optimizer, as plain JSON values."""
    config = {k: v for k, v in optimizer.get_config().items() if v is not None}
    config.pop("name", None)  # Keras numbers optimizers within a process
    described = {"class": type(optimizer).__name__, **config}
    return json.loads(json.dumps(described, default=str))
