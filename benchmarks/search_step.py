"""Time and peak memory of search and fine-tuning steps over those of a float step.

    python benchmarks/search_step.py --networks=resnet18 --rounds=2

Synthetic images, `model.fit`. Each case runs in a process of its own, the cases one
after the other in every round; times are medians over the steps and the rounds, memory
is the peak resident set of the process. Only the ratios mean anything on another
machine: run it with nothing else running.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WARM_UP = 3
# How the profiler names an operation ("name:Kind"), and what XLA compiled.
OPERATION = re.compile(r"^[^:\s]+:(\w+)$")
COMPILED = "CpuExecutable::ExecuteAsyncOnStream"
ALL_BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclasses.dataclass(frozen=True)
class Network:
    """What is trained: a built-in model, its square images and the batch."""

    image_size: int
    batch_size: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """How it is trained; `kind` is "float", "qat" or "search"."""

    kind: str
    bits: tuple[int, ...] = (2, 3, 4)
    eta: float = 100.0
    teacher_dtype: str = "float32"
    attribution_share: float = 1.0
    jit_compile: bool = False
    steps_per_execution: int = 1
    recomputes: bool = True


NETWORKS = {
    "resnet18": Network(32, 64, {"stem": "cifar"}),
    "resnet20": Network(32, 128),
    "mobilenet_v2": Network(96, 32),
    "resnet50": Network(64, 16, {"stem": "imagenet"}),
}
CASES = {
    "float": Case("float"),
    "fine-tuning, W4A4": Case("qat"),
    "search 2-4": Case("search"),
    "search 2-8": Case("search", ALL_BITS),
    "search 2-4, eta=0": Case("search", eta=0.0),
    "search 2-8, eta=0": Case("search", ALL_BITS, eta=0.0),
    "search 2-4, a quarter attributed": Case("search", attribution_share=0.25),
    "search 2-8, a quarter attributed": Case(
        "search", ALL_BITS, attribution_share=0.25
    ),
    "search 2-4, teacher bfloat16": Case("search", teacher_dtype="bfloat16"),
    "search 2-4, operands kept": Case("search", recomputes=False),
    "search 2-4, 4 steps a call": Case("search", steps_per_execution=4),
    "float, XLA": Case("float", jit_compile=True),
    "search 2-4, XLA": Case("search", jit_compile=True),
}


def measure(
    network: str, case: str, steps: int, batch_size: int | None = None
) -> dict[str, float]:
    """Time the steps of one case in this process.

    Args:
        network: a key of NETWORKS.
        case: a key of CASES.
        steps: steps timed, after the warm-up.
        batch_size: images in a batch; None for the network's.

    Returns:
        Median seconds a step, and the peak resident memory in bytes.
    """
    model, batches = prepared(network, case, batch_size)
    clock = StepClock(CASES[case].steps_per_execution)
    total = CASES[case].steps_per_execution * (WARM_UP + steps)
    model.fit(batches, steps_per_epoch=total, verbose=0, callbacks=[clock.callback()])
    return {
        "seconds": statistics.median(clock.seconds[WARM_UP:]),
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def profile(
    network: str, case: str, steps: int, batch_size: int | None = None
) -> list[tuple[str, float, float]]:
    """Where the threads' time of a case goes, by kind of operation.

    Args:
        network: a key of NETWORKS.
        case: a key of CASES.
        steps: steps profiled, after the warm-up.
        batch_size: images in a batch; None for the network's.

    Returns:
        Kind, milliseconds a step added over the threads, share of all; largest first.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

    model, batches = prepared(network, case, batch_size)
    model.fit(batches, steps_per_epoch=WARM_UP, verbose=0)
    space = XSpace()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        model.fit(batches, steps_per_epoch=steps, verbose=0)
        tf.profiler.experimental.stop()
        (path,) = Path(folder).rglob("*.xplane.pb")
        space.ParseFromString(path.read_bytes())
    times: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name = plane.event_metadata[event.metadata_id].name
            if name == COMPILED:
                times["compiled by XLA (quantizers)"] += event.duration_ps
            elif found := OPERATION.match(name):
                times[found[1]] += event.duration_ps
    whole = sum(times.values())
    return [
        (kind, time / 1e9 / steps, time / whole) for kind, time in times.most_common()
    ]


def prepared(network: str, case: str, batch_size: int | None = None) -> tuple[Any, Any]:
    """The compiled model of a case, and the endless batches it trains on."""
    import keras
    import numpy as np
    import tensorflow as tf

    from gmpq_tf.models import build_model

    keras.utils.set_random_seed(0)
    spec = NETWORKS[network]
    shape = (spec.image_size, spec.image_size, 3)
    images = batch_size or spec.batch_size
    random = np.random.default_rng(0)
    x = random.standard_normal((images, *shape), dtype="float32")
    y = random.integers(0, 10, images)
    float_model = build_model(network, shape, 10, **spec.options)
    model = trained_model(float_model, CASES[case], x)
    return model, tf.data.Dataset.from_tensors((x, y)).repeat()


def trained_model(model: Any, case: Case, images: Any) -> Any:
    """The compiled model of a case."""
    import keras

    import gmpq_tf as gmpq
    from gmpq_tf.layers.quantized import QuantConv2D, QuantDepthwiseConv2D

    QuantConv2D.recomputes = QuantDepthwiseConv2D.recomputes = case.recomputes
    options: dict[str, Any] = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
        "jit_compile": case.jit_compile,
        "steps_per_execution": case.steps_per_execution,
    }
    if case.kind == "qat":
        model = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
        gmpq.calibrate(model, [images])
    if case.kind == "search":
        space = gmpq.SearchSpace(case.bits, case.bits)
        model = gmpq.PolicySearch(
            model,
            space,
            eta=case.eta,
            teacher_dtype=case.teacher_dtype,
            attribution_share=case.attribution_share,
        )
        model.calibrate([images])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), **options)
    return model


class StepClock:
    """Seconds of each step of a `fit`."""

    def __init__(self, steps_per_call: int) -> None:
        self.steps_per_call = steps_per_call
        self.seconds: list[float] = []

    def callback(self) -> Any:
        """The Keras callback that takes the times."""
        import keras

        started = time.perf_counter()

        def take(batch: int, logs: Any = None) -> None:
            nonlocal started
            now = time.perf_counter()
            self.seconds.append((now - started) / self.steps_per_call)
            started = now

        clock = keras.callbacks.Callback()
        clock.on_train_batch_end = take  # type: ignore[method-assign]
        return clock


def run_case(network: str, case: str, *options: str) -> dict[str, float]:
    """`measure` in a fresh process, with more of this command's options."""
    command = [sys.executable, __file__, f"--networks={network}", f"--case={case}"]
    command += options
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def compare(
    network: str, cases: Sequence[str], rounds: int, *options: str
) -> list[dict]:
    """Run the cases of a network, interleaved over the rounds; print the ratios.

    Args:
        network: a key of NETWORKS.
        cases: keys of CASES, "float" first.
        rounds: processes a case.
        *options: of the processes.

    Returns:
        One row a case: medians, and ratios over the first one's.
    """
    runs: dict[str, list[dict]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            runs[case].append(run_case(network, case, *options))
    rows = summarize(network, runs)
    for row in rows:
        print(
            f"{network:13s} {row['case']:30s} {row['seconds']:7.3f} s  "
            f"x{row['time_ratio']:.2f}   {row['bytes'] / 1e9:5.2f} GB  "
            f"x{row['memory_ratio']:.2f}",
            flush=True,
        )
    return rows


def summarize(network: str, runs: dict[str, list[dict]]) -> list[dict]:
    """Medians over the rounds and ratios over the first case."""
    rows = [
        {
            "network": network,
            "case": case,
            "seconds": statistics.median(r["seconds"] for r in results),
            "bytes": statistics.median(r["bytes"] for r in results),
            "rounds": results,
        }
        for case, results in runs.items()
    ]
    for row in rows:
        row["time_ratio"] = row["seconds"] / rows[0]["seconds"]
        row["memory_ratio"] = row["bytes"] / rows[0]["bytes"]
    return rows


def main() -> None:
    """Run the cases of every network, print the ratios, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), help="one case, in this process")
    parser.add_argument(
        "--profile", choices=list(CASES), help="time by kind of operation, of one case"
    )
    parser.add_argument(
        "--networks", default=",".join(NETWORKS), help="comma list of networks"
    )
    parser.add_argument(
        "--cases", default=";".join(CASES), help="cases, joined by semicolons"
    )
    parser.add_argument("--steps", type=int, default=8, help="steps timed a process")
    parser.add_argument("--batch_size", type=int, help="instead of the network's")
    parser.add_argument("--rounds", type=int, default=2, help="processes a case")
    parser.add_argument("--output", help="JSON file to write after every network")
    args = parser.parse_args()
    networks, cases = args.networks.split(","), args.cases.split(";")
    if args.profile:
        shares = profile(networks[0], args.profile, args.steps, args.batch_size)
        for kind, milliseconds, share in shares:
            print(f"{kind:40s} {milliseconds:9.1f} ms {100 * share:5.1f} %")
        return
    if args.case:
        found = measure(networks[0], args.case, args.steps, args.batch_size)
        print(json.dumps(found))
        return
    if cases[0] != "float" or any(case not in CASES for case in cases):
        parser.error(f"cases must be of {list(CASES)}, float first; received {cases}")
    rows: list[dict] = []
    options = [f"--steps={args.steps}"]
    if args.batch_size:
        options.append(f"--batch_size={args.batch_size}")
    for network in networks:
        rows += compare(network, cases, args.rounds, *options)
        if args.output:
            record = {"command": " ".join(sys.argv), "cpu": cpu_name(), "rows": rows}
            record["versions"] = versions()
            Path(args.output).write_text(json.dumps(record, indent=2) + "\n")


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
