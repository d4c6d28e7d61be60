"""Look a name up in a plain-dict registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from gmpq_tf.names import suggest

T = TypeVar("T")


def lookup(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return `registry[name]`, or raise ValueError naming the nearest entry."""
    if name not in registry:
        raise ValueError(
            f"Unknown {what}. Received: {name!r}. {suggest(name, registry)}"
        )
    return registry[name]
