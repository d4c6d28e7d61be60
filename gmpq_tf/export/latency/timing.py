"""Times small files with the runtime of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gmpq_tf.export.tflite.runtime import WARM_UP_RUNS, TFLiteModel
from gmpq_tf.export.tflite.turns import Invoke, take_turns


@dataclass(frozen=True)
class Timing:
    """How files are timed.

    Args:
        threads: number of threads of each interpreter.
        rounds: number of turns of each file.
        invocations: timed runs in one turn, after up to 3 runs that are not timed.
        clock: returns the time in seconds.
    """

    threads: int = 1
    rounds: int = 20
    invocations: int = 10
    clock: Callable[[], float] = time.perf_counter


def open_file(content: bytes, threads: int) -> Invoke:
    """A function that runs a file once, on whatever its inputs contain."""
    return TFLiteModel(content, threads).interpreter.invoke


def time_files(
    contents: Mapping[str, bytes],
    timing: Timing,
    opened: Callable[[bytes, int], Invoke] = open_file,
) -> dict[str, float]:
    """Milliseconds of one run of each file: the lower quartile of its turns.

    The files take turns, so that other work of the machine affects all of them alike;
    the quartile leaves occasional disturbances out.

    Args:
        contents: name -> bytes of a file.
        timing: how often, and on how many threads.
        opened: (bytes, threads) -> function that runs the file once.
    """
    invokes = {name: opened(c, timing.threads) for name, c in contents.items()}
    turns = take_turns(
        invokes,
        timing.rounds,
        timing.invocations,
        min(timing.invocations, WARM_UP_RUNS),
        timing.clock,
    )
    return {name: 1000 * lower_quartile(values) for name, values in turns.items()}


def lower_quartile(values: list[float]) -> float:
    """The value below which a quarter of all values lie."""
    return sorted(values)[len(values) // 4]
