"""Training in narrower floats than the weights are kept in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import keras

from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]


@contextmanager
def computing_in(model: keras.Model, precision: Precision) -> Iterator[None]:
    """Layers compute in `precision` inside the block; weights stay float32.

    Quantizers stay in float32 too: codes of 8 bits times a step have more digits than
    bfloat16. Unlike a global Keras policy, which acts where layers are made, this
    trains any model, and what is saved after the block computes in float32 again.

    Args:
        model: whose `fit` the block calls; its layers compute in float32 outside.
        precision: "float32" changes nothing. "mixed_float16" needs an optimizer that
            scales the loss.
    """
    changed = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if precision != "float32"
        and layer.dtype_policy.name == "float32"
        and not isinstance(layer, (InputQuantizer, KernelQuantizer))
    ]
    before = [layer.dtype_policy for layer in changed]
    for layer in changed:
        layer.dtype_policy = keras.DTypePolicy(precision)
    try:
        yield
    finally:
        for layer, policy in zip(changed, before, strict=True):
            layer.dtype_policy = policy
