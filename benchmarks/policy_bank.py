"""Fine-tunes many policies of one budget: what a policy is worth after training.

    python benchmarks/policy_bank.py --model=mlperf_tiny_resnet8_cifar10.h5 \
        --data_dir=TFDS_FOLDER --output=results/policy_bank/resnet8_2-4.jsonl

One line a run: the policy's bits, its accuracy on 5,000 held-out training images and
on the 10,000 test images, and which of these it decided rightly (`right`: one bit an
image, packed, base64).

The questions, and what each answer would mean, written before the runs:

* How far above uniform is the best policy, beyond what seeds and picking the best of 64
  give? Nothing beyond noise: on this network, space and budget a search is worth
  nothing after training, and uniform is the honest advice. A point or more: a search
  that finds such policies is worth its cost.
* What is the standard deviation between policies, beside that between seeds of one?
  Their ratio bounds the rank correlation that any value can have with one run of each.
* Which values made before training rank policies as training does (Spearman)? 0.6 or
  more is a default for fine-tuning; near 0 is no reason to search.

Every run: calibrate on 512 images, Adam 1e-3 to 0 by a cosine, batch 128,
cross-entropy, shifts and mirrors, no distillation; statistics measured again on 2,048
augmented images.
Seeds order images and augmentation alike for all policies. Nothing is chosen on test
images. Interrupted, the same command goes on with the next run.
"""

from __future__ import annotations

import argparse
import base64
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.models import load_model
from gmpq_tf.space import random_policy
from gmpq_tf.train.recipe import make_loss
from gmpq_tf.transform import snap_biases

HELD_OUT, CALIBRATION, STATISTICS = 5000, 512, 16  # images, images, batches
BATCH, RATE = 128, 1e-3
SEEDS_OF = 8  # policies that run with every seed


def policies(
    model: keras.Model, space: gmpq.SearchSpace, args: argparse.Namespace
) -> Iterator[tuple[str, gmpq.BitwidthPolicy]]:
    """Uniform, those given as files, and random ones of the budget."""
    weights, activations = int(args.budget[1]), int(args.budget[3])  # "W3A3"
    yield "uniform", gmpq.BitwidthPolicy.uniform(model, weights, activations)
    for file in args.policy:
        yield Path(file).stem, gmpq.BitwidthPolicy.load(file)
    for seed in range(args.random):
        yield f"random{seed}", random_policy(model, space, args.budget, seed)


def load(args: argparse.Namespace, seed: int) -> Dataset:
    """CIFAR-10, the same held-out images for every seed."""
    return load_dataset(
        DataConfig(
            "cifar10",
            data_dir=args.data_dir,
            scaling="0..255",
            batch_size=BATCH,
            validation_size=HELD_OUT,
            seed=seed,
        )
    )


def train(
    args: argparse.Namespace, policy: gmpq.BitwidthPolicy, seed: int, epochs: int
) -> dict:
    """Fine-tune one policy; return what came of it."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    start, data = time.process_time(), load(args, seed)
    model = load_model(args.model)
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, data.calibration(CALIBRATION))
    steps = epochs * data.steps_per_epoch
    if epochs:
        rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
        student.compile(keras.optimizers.Adam(rate), make_loss(model))
        fitted = student.fit(
            data.train(epochs=epochs),
            epochs=epochs,
            steps_per_epoch=data.steps_per_epoch,
            shuffle=False,
            verbose=0,
        )
        snap_biases(student, data.train(epochs=1).take(STATISTICS))
    held = right(student, data.validation())
    test = right(student, data.test())
    return {
        "held": round(float(held.mean()), 6),
        "test": round(float(test.mean()), 6),
        "loss": round(fitted.history["loss"][-1], 6) if epochs else None,
        "seconds": round(time.process_time() - start, 1),
        "right": base64.b64encode(np.packbits(test).tobytes()).decode(),
    }


def right(student: keras.Model, batches: tf.data.Dataset) -> np.ndarray:
    """Which images a student decides rightly, bool [images]."""
    found = [
        np.argmax(student.predict_on_batch(x), -1) == y
        for x, y in batches.as_numpy_iterator()
    ]
    return np.concatenate(found)


def runs(args: argparse.Namespace, names: list[str]) -> Iterator[tuple[str, int]]:
    """(policy, seed) in the order they are run: one seed of all, then more seeds."""
    for name in names:
        yield name, 0
    for name in names[:SEEDS_OF]:
        for seed in range(1, args.seeds):
            yield name, seed


def main() -> None:
    """Run what has not been run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="float CIFAR-10 network, 0..255")
    parser.add_argument("--data_dir", help="TFDS folder that holds cifar10")
    parser.add_argument("--budget", default="W3A3", help="of the policies' operations")
    parser.add_argument("--widest", type=int, default=4, help="most bits of the space")
    parser.add_argument("--random", type=int, default=64, help="random policies")
    parser.add_argument("--policy", nargs="*", default=[], help="policy files to add")
    parser.add_argument("--only", nargs="*", help="names of the policies to run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    model = load_model(args.model)
    bits = tuple(range(2, args.widest + 1))
    space = gmpq.SearchSpace(bits, bits)
    found = dict(policies(model, space, args))
    done = set()
    if args.output.exists():
        lines = [json.loads(line) for line in args.output.read_text().splitlines()]
        done = {(x["policy"], x["seed"], x["epochs"]) for x in lines}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    versions = f"{platform.python_version()} {tf.__version__} {keras.__version__}"
    for name, seed in runs(args, args.only or list(found)):
        if (name, seed, args.epochs) in done:
            continue
        bits = {n: [b.weight_bits, b.activation_bits] for n, b in found[name].items()}
        row = {"policy": name, "seed": seed, "epochs": args.epochs, "bits": bits}
        row |= train(args, found[name], seed, args.epochs) | {"versions": versions}
        with args.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, seed, row["held"], row["test"], row["seconds"], flush=True)


if __name__ == "__main__":
    main()
