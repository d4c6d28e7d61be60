"""Time from a trained float model to the first search step, part by part.

    python benchmarks/first_step.py --rounds=2 --output=first_step.json

Synthetic images, `model.fit`, a small batch so that computing does not hide the rest.
Each case runs in a process of its own, the cases one after the other in every round;
times are medians over the rounds. Run it with nothing else running. Only public
functions are called, so that PYTHONPATH may name an older version of the library.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)
# Whether it is a search, and what the environment says of XLA for the quantizers.
CASES = {
    "float": (False, {}),
    "search": (True, {}),
    "search, without XLA": (True, {"GMPQ_XLA_QUANTIZERS": "0"}),
}
# What `total` adds up.
PARTS = ("build", "calibrate", "prepare", "trace", "compile", "step")
STEADY = 4  # steps timed after the second


def measure(
    network: str, case: str, image_size: int, batch_size: int, batches: int
) -> dict[str, float]:
    """Time one case in this process.

    Args:
        network: name of a built-in model.
        case: a key of CASES.
        image_size: height and width, in pixels.
        batch_size: images of a step.
        batches: batches that ranges are calibrated on.

    Returns:
        Seconds: `network` to make the float model (in no total); `build` of the
        hypernet, `calibrate`, `prepare` from `compile` to the first trace, `trace` in
        Python, `compile` of graph and XLA, `step` once all is ready, `second` step,
        `total` without that one. Number: `traces` of the step.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from gmpq_tf.models import build_model

    searches = CASES[case][0]
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    shape = (image_size, image_size, 3)
    x = random.standard_normal((batch_size, *shape), dtype="float32")
    y = random.integers(0, 10, batch_size)
    found: dict[str, float] = {}
    model = timed(found, "network", lambda: build_model(network, shape, 10))
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    found["build"] = found["calibrate"] = 0.0
    if searches:
        model = timed(found, "build", lambda: search_of(model))
        timed(found, "calibrate", lambda: model.calibrate([x] * batches))
    found |= first_steps(model, data)
    found["total"] = sum(found[part] for part in PARTS)
    return found


def search_of(model: Any) -> Any:
    """The search for bit-widths 2 to 8 of weights and activations."""
    import gmpq_tf as gmpq

    return gmpq.PolicySearch(model, gmpq.SearchSpace(ALL_BITS, ALL_BITS))


def timed(found: dict[str, float], part: str, function: Callable[[], Any]) -> Any:
    """Result of a function; the seconds it took are noted."""
    started = time.perf_counter()
    result = function()
    found[part] = time.perf_counter() - started
    return result


def first_steps(model: Any, data: Any) -> dict[str, float]:
    """Seconds of the parts of a `fit` that lie before and in its first steps."""
    import keras

    traces: list[tuple[float, float]] = []
    ends: list[float] = []
    train_step = model.train_step

    def traced(batch: Any) -> Any:
        started = time.perf_counter()
        result = train_step(batch)
        traces.append((started, time.perf_counter()))
        return result

    clock = keras.callbacks.Callback()
    clock.on_train_batch_end = (  # type: ignore[method-assign]
        lambda batch, logs=None: ends.append(time.perf_counter())
    )
    model.train_step = traced
    started = time.perf_counter()
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(data, steps_per_epoch=2 + STEADY, epochs=1, verbose=0, callbacks=[clock])
    steps = [after - before for before, after in itertools.pairwise(ends)]
    step = statistics.median(steps[1:])
    trace = sum(end - start for start, end in traces)
    return {
        "prepare": traces[0][0] - started,
        "trace": trace,
        "compile": ends[0] - traces[0][0] - trace - step,
        "step": step,
        "second": steps[0],
        "traces": len(traces),
    }


def run_case(case: str, *options: str) -> dict[str, float]:
    """`measure` in a fresh process, with more of this command's options."""
    command = [sys.executable, __file__, f"--case={case}", *options]
    environment = {**os.environ, **CASES[case][1]}
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    return json.loads(output.splitlines()[-1])


def compare(cases: Sequence[str], rounds: int, *options: str) -> list[dict]:
    """Run the cases, interleaved over the rounds; print medians of their parts.

    Args:
        cases: keys of CASES.
        rounds: processes a case.
        *options: of the processes.

    Returns:
        One row a case: medians, and every round.
    """
    runs: dict[str, list[dict]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            runs[case].append(run_case(case, *options))
    rows = []
    for case, results in runs.items():
        medians = {k: statistics.median(r[k] for r in results) for k in results[0]}
        rows.append({"case": case, **medians, "rounds": results})
        parts = "  ".join(f"{part} {medians[part]:.2f}" for part in PARTS)
        print(f"{case:20s} {medians['total']:7.2f} s   {parts}", flush=True)
    return rows


def main() -> None:
    """Run the cases, print the parts, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), help="one case, in this process")
    parser.add_argument("--cases", default=";".join(CASES), help="joined by semicolons")
    parser.add_argument("--network", default="mobilenet_v2", help="a built-in model")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--batch_size", type=int, default=8, help="images a step")
    parser.add_argument("--batches", type=int, default=4, help="to calibrate on")
    parser.add_argument("--rounds", type=int, default=2, help="processes a case")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    sizes = (args.image_size, args.batch_size, args.batches)
    if args.case:
        print(json.dumps(measure(args.network, args.case, *sizes)))
        return
    cases = args.cases.split(";")
    if any(case not in CASES for case in cases):
        parser.error(f"cases must be of {list(CASES)}; received {cases}")
    options = [f"--network={args.network}"]
    for name, size in zip(("image_size", "batch_size", "batches"), sizes, strict=True):
        options.append(f"--{name}={size}")
    rows = compare(cases, args.rounds, *options)
    if args.output:
        record = {"command": " ".join(sys.argv), **machine(), "rows": rows}
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """The processor, its cores, and versions of what ran."""
    import keras
    import tensorflow as tf

    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [x.split(":")[1].strip() for x in lines if "model name" in x]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }


if __name__ == "__main__":
    main()
