"""Time several things that take turns, so that what disturbs one disturbs all."""

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
    """Seconds of one run in each turn of each.

    Args:
        invokes: name -> what is timed.
        rounds: turns of each.
        invocations: timed runs in a turn.
        warm_up: runs before them in a turn that are not timed.
        clock: seconds.
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
