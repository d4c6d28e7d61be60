"""Times several functions in turns, so that disturbances affect all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Invoke = Callable[[], None]


def take_turns(
    invokes: Mapping[str, Invoke],
    rounds: int,
    invocations: int = 1,
    warm_up: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of one run, for each function and each of its turns.

    Args:
        invokes: name -> function to time.
        rounds: number of turns of each function.
        invocations: timed runs in a turn; their mean is taken.
        warm_up: runs in a turn before the timed ones.
        clock: returns the time in seconds.
    """
    turns: dict[str, list[float]] = {name: [] for name in invokes}
    for _ in range(rounds):
        for name, invoke in invokes.items():
            for _ in range(warm_up):
                invoke()
            start = clock()
            for _ in range(invocations):
                invoke()
            turns[name].append((clock() - start) / invocations)
    return turns
