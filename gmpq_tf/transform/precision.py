"""Trains in narrower floats than those of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import keras

from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
OTHER_FLOATS = ("float16", "bfloat16", "float64")


@contextmanager
def made_in_float32() -> Iterator[None]:
    """Layers made inside the block compute in float32, whatever Keras's global policy.

    float32 adds products of codes without rounding, as integer kernels do; narrower
    floats do not.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def in_float32(config: Any) -> Any:
    """A layer's configuration, with every other float type replaced by float32.

    Args:
        config: plain values, nested, as `get_config` returns them.
    """
    if isinstance(config, (list, tuple)):
        return type(config)(in_float32(item) for item in config)
    if not isinstance(config, dict):
        return config
    return {
        key: "float32"
        if key == "dtype" and _is_other_float(value)
        else in_float32(value)
        for key, value in config.items()
    }


def _is_other_float(dtype: Any) -> bool:
    """Whether a dtype, or a serialized policy, is a float type other than float32."""
    if isinstance(dtype, dict):
        dtype = (dtype.get("config") or {}).get("name")
    return str(dtype).removeprefix("mixed_") in OTHER_FLOATS


@contextmanager
def computing_in(model: keras.Model, precision: Precision) -> Iterator[None]:
    """Layers compute in `precision` inside the block; weights stay float32.

    Quantizers stay in float32 too: bfloat16 has too few digits for 8-bit codes times a
    step. Unlike a global Keras policy, which acts when layers are made, this works for
    any model, and a model saved after the block computes in float32 again.

    Args:
        model: the model that the block trains; its layers compute in float32 outside.
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
