"""Peak memory of a search by each strategy, over that of float training.

    python benchmarks/strategy_memory.py --output=results/strategies/memory.jsonl

Asked for: at most twice. ResNet-8, random images of 32 pixels, batches of 64, each
search in a process of its own, cut short where only its time depends on how long it
goes on: as many images as a batch or two, and few steps, trials and pairs. The
processes are forked from one that has imported TensorFlow and computed nothing; memory
is the peak resident set that the system counts of each, TensorFlow's own included. One
line a strategy; those of the file are not measured again. Not on Windows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.models import build_model
from gmpq_tf.search import STRATEGIES

IMAGES, BATCH = 512, 64
FLOAT = "float training"
TWO_BATCHES: dict[str, Any] = {"images": 2 * BATCH}
FEW_STEPS: dict[str, Any] = {"training_steps": 8, **TWO_BATCHES}
FEW_TRIALS: dict[str, Any] = {"trials": 4, **TWO_BATCHES}
# Options with which a search is short; those with gradients train one epoch.
OPTIONS: dict[str, dict[str, Any]] = {
    "loss_delta": TWO_BATCHES,
    "one_shot": FEW_STEPS,
    "limpq": FEW_STEPS,
    "hawq": {"probes": 2, "trace_images": 2 * BATCH, **TWO_BATCHES},
    "fisher": TWO_BATCHES,
    "clado": {"paired": 2, "pair_images": BATCH, **TWO_BATCHES},
    "ompq": TWO_BATCHES,
    "topological_entropy": {"map_images": 32, **TWO_BATCHES},
    "random": {"policies": 4, **TWO_BATCHES},
    "evolution": {"population": 4, **FEW_TRIALS},
    "haq": {"warmup": 2, **FEW_TRIALS},
}
EPOCH: dict[str, Any] = {"epochs": 1, "learning_rate": 0.01}


def prepared() -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    """The network, and images with labels."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    model = build_model("resnet8", (32, 32, 3), 10)
    random = np.random.default_rng(0)
    images = random.normal(size=(IMAGES, 32, 32, 3)).astype("float32")
    return model, (images, random.integers(0, 10, IMAGES))


def float_training() -> None:
    """An epoch of the float network."""
    model, (images, labels) = prepared()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    model.fit(images, labels, batch_size=BATCH, verbose=0)


def search(name: str) -> None:
    """A short search by a strategy."""
    model, data = prepared()
    options = OPTIONS.get(name, EPOCH if STRATEGIES[name].gradient else {})
    gmpq.search_policy(model, data, name, "W3A3", progress="none", **options)


def peak(function: Callable[..., None], *args: Any) -> int:
    """The most memory that a process of its own took for a function, in bytes.

    Raises:
        RuntimeError: the function failed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*args)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"{function.__name__}{args} ended with {status}")
    return usage.ru_maxrss * 1024


def main() -> None:
    """Measure what has not been measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(STRATEGIES))
    parser.add_argument("--output", type=Path, required=True, help="JSON lines")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, int] = {}
    if args.output.exists():
        lines = map(json.loads, args.output.read_text().splitlines())
        done = {row["strategy"]: row["bytes"] for row in lines}
    for name in (FLOAT, *(args.only or STRATEGIES)):
        if name in done:
            continue
        done[name] = peak(float_training) if name == FLOAT else peak(search, name)
        row = {
            "strategy": name,
            "bytes": done[name],
            "over_float": round(done[name] / done[FLOAT], 3),
        }
        with args.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
