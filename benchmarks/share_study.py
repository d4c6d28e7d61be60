"""Are policies the same where R_G is taken on a quarter of each batch?

    python benchmarks/share_study.py --model=mlperf_tiny_resnet8_cifar10.h5 \
        --data_dir=TFDS_FOLDER --output=results/attribution_share/summary.json

Searches of ResNet-8 on CIFAR-10, the same seeds (order of images, augmentation) with
the generalization risk on the whole batch, on a quarter of it, and without (eta = 0),
which is the control: it says how far policies move where the risk says nothing.

What each answer means, written before the runs. Compared are the expected bits of every
searched tensor, by Spearman's rank correlation and by the mean distance in bits:

* quarter and whole of one seed are as near as two seeds of the whole: the quarter costs
  nothing that seeds do not cost anyway;
* they are farther apart: it changes what is found; the quarter is for speed alone;
* quarter and whole are no nearer than whole and control: the risk hardly steers here,
  so that this study cannot tell;
* expected bits differ more between seeds of the quarter than of the whole: its noise
  reaches the policy, and a search with it should run longer.

Interrupted, the same command goes on with the next search.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import spearmanr

import gmpq_tf as gmpq
from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.models import load_model
from gmpq_tf.search import PolicySearch

KINDS = {
    "whole": {"attribution_share": 1.0},
    "quarter": {"attribution_share": 0.25},
    "control": {"eta": 0.0},
}
BUDGET = "W3A3"


def search(path: str, data_dir: str, kind: str, seed: int, steps: int) -> dict:
    """Search once; return what was found."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    config = DataConfig(
        "cifar10", data_dir=data_dir, scaling="0..255", batch_size=64, seed=seed
    )
    data = load_dataset(config)
    searcher = PolicySearch(load_model(path), budget=BUDGET, **KINDS[kind])
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    searcher.compile(
        keras.optimizers.Adam(rate),
        keras.optimizers.Adam(0.02),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    searcher.calibrate(data.calibration())
    batches = data.train(epochs=1).take(steps)
    fitted = searcher.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    free = [x for x in searcher.mixed_layers() if len(x.weight_bits) > 1]
    return {
        "logs": {name: values[-1] for name, values in fitted.history.items()},
        "expected_bits": {
            x.name: [float(each) for each in x.expected_bits()] for x in free
        },
        "bits": {
            name: [bits.weight_bits, bits.activation_bits]
            for name, bits in searcher.policy().items()
        },
    }


def compared(one: dict, other: dict) -> dict[str, float]:
    """How near two searches ended."""
    a, b = (np.ravel(list(x["expected_bits"].values())) for x in (one, other))
    first, second = (np.ravel(list(x["bits"].values())) for x in (one, other))
    return {
        "rank_correlation": float(spearmanr(a, b).statistic),
        "bits_apart": float(np.abs(a - b).mean()),
        "policy_bits_differing": float(np.sum(first != second)),
    }


def mean(comparisons: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of each comparison."""
    found = list(comparisons)
    return {name: float(np.mean([c[name] for c in found])) for name in found[0]}


def summarize(runs: dict[str, dict], seeds: list[int]) -> dict:
    """Mean comparisons of kinds of one seed, of seeds of one kind, and their spread."""
    summary: dict = {}
    for one, other in combinations(KINDS, 2):
        pairs = ((runs[f"{one} {s}"], runs[f"{other} {s}"]) for s in seeds)
        summary[f"{one} and {other}, same seed"] = mean(compared(*p) for p in pairs)
    for kind in KINDS:
        found = [runs[f"{kind} {seed}"] for seed in seeds]
        pairs = combinations(found, 2)
        summary[f"seeds of {kind}"] = mean(compared(*p) for p in pairs) | {
            "spread_of_expected_bits": float(
                np.std(
                    [np.ravel(list(x["expected_bits"].values())) for x in found],
                    axis=0,
                    ddof=1,
                ).mean()
            )
        }
    return summary


def main() -> None:
    """Search each kind with each seed and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="float CIFAR-10 network, 0..255")
    parser.add_argument("--data_dir", help="TFDS folder that holds cifar10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error(f"two seeds or more are compared. Received: {args.seeds}")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    record: dict = {"command": " ".join(["python", *sys.argv]), "runs": {}}
    if args.output.exists():
        record["runs"] = json.loads(args.output.read_text())["runs"]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for kind in KINDS:
            name = f"{kind} {seed}"
            if name not in record["runs"]:
                found = search(args.model, args.data_dir, kind, seed, args.steps)
                record["runs"][name] = found
                args.output.write_text(json.dumps(record, indent=2) + "\n")
                print(name, json.dumps(found["logs"]), found["bits"], flush=True)
    record["summary"] = summarize(record["runs"], args.seeds)
    record["versions"] = {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "gmpq-tf": gmpq.__version__,
    }
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["summary"], indent=2))


if __name__ == "__main__":
    main()
