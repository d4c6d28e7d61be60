"""A look at the float network: quantizers off, and observers on their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

Observers = Mapping[Any, Callable[[np.ndarray], None]]

# Of the thread, not of the quantizers: other threads go on quantizing, and nothing is
# left behind where the block is left by an error.
_observers: ContextVar[Observers | None] = ContextVar("observers", default=None)


@contextmanager
def observing(observers: Observers) -> Iterator[None]:
    """Quantizers pass on what they are given, in what is run inside the block.

    Args:
        observers: `InputQuantizer` -> what is shown the values that reach it, of any
            shape; models must run eagerly.
    """
    token = _observers.set(observers)
    try:
        yield
    finally:
        _observers.reset(token)


def observers_now() -> Observers | None:
    """What `observing` was given; None outside of it."""
    return _observers.get()
