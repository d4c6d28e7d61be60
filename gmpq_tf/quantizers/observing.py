"""Runs a model with quantizers off, and shows their inputs to observers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

Observers = Mapping[Any, Callable[[np.ndarray], None]]

# A context variable, not an attribute of the quantizers: other threads go on
# quantizing, and an error inside the block leaves nothing behind.
_observers: ContextVar[Observers | None] = ContextVar("observers", default=None)


@contextmanager
def observing(observers: Observers) -> Iterator[None]:
    """Inside the block quantizers return their inputs unchanged.

    Args:
        observers: `InputQuantizer` -> function that is called with the values that
            reach it, of any shape. Models must run eagerly.
    """
    token = _observers.set(observers)
    try:
        yield
    finally:
        _observers.reset(token)


def observers_now() -> Observers | None:
    """The observers of the enclosing `observing` block; None outside of one."""
    return _observers.get()
