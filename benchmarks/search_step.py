"""Step time and peak memory of a GMPQ search step over those of a float step.

    python benchmarks/search_step.py [--steps=12] [--output=results/search_step.json]

ResNet18 for 32x32 images, batch 64, synthetic data. Each case runs in a fresh process,
float and search interleaved over the rounds; times are medians, memory is the peak
resident set of the process. Only the ratios mean anything on another machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "float": None,
    "search 2-4": {"bits": (2, 3, 4), "eta": 100.0},
    "search 2-8": {"bits": (2, 3, 4, 5, 6, 7, 8), "eta": 100.0},
    "search 2-4, eta=0": {"bits": (2, 3, 4), "eta": 0.0},
    "search 2-8, eta=0": {"bits": (2, 3, 4, 5, 6, 7, 8), "eta": 0.0},
}
WARM_UP = 3


def measure(case: str, batch_size: int, steps: int) -> dict:
    """Time the steps of one case in this process.

    Args:
        case: a key of CASES.
        batch_size: images a step.
        steps: steps timed, after the warm-up.

    Returns:
        Median seconds a step, and the peak resident memory in bytes.
    """
    import keras
    import numpy as np

    import gmpq_tf as gmpq
    from gmpq_tf.models import build_model

    keras.utils.set_random_seed(0)
    model = build_model("resnet18", (32, 32, 3), 10, stem="cifar")
    options = CASES[case]
    if options is not None:
        space = gmpq.SearchSpace(options["bits"], options["bits"])
        model = gmpq.PolicySearch(model, space, eta=options["eta"])
    random = np.random.default_rng(0)
    x = random.standard_normal((batch_size, 32, 32, 3), dtype="float32")
    y = random.integers(0, 10, batch_size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if options is None:
        model.compile(optimizer, loss, metrics=["accuracy"])
    else:
        model.calibrate([x])
        model.compile(optimizer, "sgd", loss, ["accuracy"])
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def run_case(case: str, batch_size: int, steps: int) -> dict:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, f"--case={case}"]
    command += [f"--batch_size={batch_size}", f"--steps={steps}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Run every case, print the ratios over the float step, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), help="one case, in this process")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12, help="steps timed a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes a case")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case, args.batch_size, args.steps)))
        return
    runs: dict[str, list[dict]] = {case: [] for case in CASES}
    for _ in range(args.rounds):
        for case in CASES:
            runs[case].append(run_case(case, args.batch_size, args.steps))
    rows = summarize(runs)
    for row in rows:
        print(
            f"{row['case']:20s} {row['seconds']:7.3f} s  x{row['time_ratio']:.2f}   "
            f"{row['bytes'] / 1e9:5.2f} GB  x{row['memory_ratio']:.2f}"
        )
    if args.output:
        record = {"command": " ".join(sys.argv), "cpu": cpu_name(), "rows": rows}
        record["versions"] = versions()
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


def summarize(runs: dict[str, list[dict]]) -> list[dict]:
    """Medians over the rounds and ratios over the float case."""
    rows = [
        {
            "case": case,
            "seconds": statistics.median(r["seconds"] for r in results),
            "bytes": statistics.median(r["bytes"] for r in results),
        }
        for case, results in runs.items()
    ]
    for row in rows:
        row["time_ratio"] = row["seconds"] / rows[0]["seconds"]
        row["memory_ratio"] = row["bytes"] / rows[0]["bytes"]
    return rows


def cpu_name() -> str:
    """The processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (x.split(":")[1].strip() for x in lines if "model name" in x), "unknown"
    )


def versions() -> dict[str, str]:
    """Versions of what the step runs on."""
    import keras
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


if __name__ == "__main__":
    main()
