"""Does short fine-tuning rank policies as two epochs do?

    python benchmarks/policy_bank_short.py --model=mlperf_tiny_resnet8_cifar10.h5 \
        --data_dir=TFDS_FOLDER --bank=results/policy_bank/resnet8_2-4.jsonl \
        --steps=200 --output=results/policy_bank/short_200.json

Trains policies of the bank of `policy_bank.py` as finalists are (SGD 0.01 falling to 0,
batches of 64), and measures the loss on 1,024 training images that it keeps apart.
Spearman's correlation with the bank's test accuracy: 0.6 or more, and finalists can be
trusted; 0 or less, and they choose by chance or worse.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from policy_bank_scores import read_bank
from policy_bank_values import training_images
from scipy import stats

import gmpq_tf as gmpq
from gmpq_tf.models import load_model
from gmpq_tf.search import policies
from gmpq_tf.search.evaluator import Evaluator

HELD, TRAINED = 1024, 45_000  # images


def case_of(args: argparse.Namespace) -> Any:
    """The search's own case of this network and these images."""
    model = load_model(args.model)
    images, labels = training_images(args.data_dir, TRAINED)
    cases: list[Any] = []
    policies.search_case = lambda case, *rest: cases.append(case)
    gmpq.search_policy(
        model, (images, labels), "loss_delta", args.budget, progress="none"
    )
    return cases[0]


def main() -> None:
    """Train, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="float CIFAR-10 network, 0..255")
    parser.add_argument("--data_dir", help="TFDS folder that holds cifar10")
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--budget", default="W3A3")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="names of policies; none: all")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    runs = {r["policy"]: r for r in read_bank(args.bank) if r["seed"] == 0}
    evaluator = Evaluator(case_of(args), HELD, labels=True)
    rows = []
    for name in args.only or list(runs):
        bits = {layer: tuple(pair) for layer, pair in runs[name]["bits"].items()}
        found = evaluator.measure(bits, args.steps, learning_rate=0.01, batch_size=64)
        loss = float(found.task.mean())
        rows.append({"policy": name, "loss": loss, "test": runs[name]["test"]})
        print(rows[-1], flush=True)
    losses, accuracies = zip(*((r["loss"], r["test"]) for r in rows), strict=True)
    rho = float(stats.spearmanr(np.negative(losses), accuracies).statistic)
    print(f"Spearman {rho:.2f} of {len(rows)}")
    found = {"steps": args.steps, "rho": rho, "policies": rows}
    args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
