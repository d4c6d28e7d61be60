"""Do apot, alq and rq beat lsq after the same fine-tuning? ResNet-8 on CIFAR-10.

    python benchmarks/kernel_methods.py --model=mlperf_tiny_resnet8_cifar10.h5 \
        --data_dir=TFDS_FOLDER --output=results/strategies/quantizers.jsonl

Written before the runs. Each method at uniform W3A3 and W2A2 (first and last layer at
W6A8, which all of them can), by the recipe of `policy_bank.py`, of 20,000 images: two
epochs, the same seed, so that images, order and augmentation are the same. McNemar's
test on the 10,000 test images, of each method against lsq: below 0.05/6 a method is
worth its own code at these bits; else lsq is the advice, and the others are there
because papers compare with them. Each student is exported, and the export verifies
every code and integer. One line a run; interrupted, the same command goes on with the
next.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from policy_bank import BATCH, CALIBRATION, RATE, STATISTICS, right

import gmpq_tf as gmpq
from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.models import load_model
from gmpq_tf.train.recipe import make_loss
from gmpq_tf.transform import snap_biases

ENDS = (6, 8)
HELD_OUT = 30_000
# Name -> quantizers of kernels and of inputs.
METHODS = {
    "lsq": ("lsq", "lsq"),
    "apot": ("apot", "lsq"),
    "alq": ("alq", "lsq"),
    "rq": ("rq", "rq"),
}
BITS = (3, 2)
VERIFIED = 256  # images of an export


def images(args: argparse.Namespace) -> Dataset:
    """CIFAR-10, of which 20,000 images train."""
    return load_dataset(
        DataConfig(
            "cifar10",
            data_dir=args.data_dir,
            scaling="0..255",
            batch_size=BATCH,
            validation_size=HELD_OUT,
            seed=args.seed,
        )
    )


def train(args: argparse.Namespace, method: str, bits: int) -> dict[str, Any]:
    """Fine-tune with one method, export, and say what came of it."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(args.seed)
    start, data = time.process_time(), images(args)
    model = load_model(args.model)
    first, *_, last = gmpq.BitwidthPolicy.uniform(model, 8, 8).layers
    pinned = {first: ENDS, last: ENDS}
    policy = gmpq.BitwidthPolicy.uniform(model, bits, bits, pinned=pinned)
    kernels, inputs = METHODS[method]
    student = gmpq.quantize_model(model, policy, inputs, kernels)
    gmpq.calibrate(student, data.calibration(CALIBRATION))
    steps = args.epochs * data.steps_per_epoch
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    student.compile(keras.optimizers.Adam(rate), make_loss(model))
    fitted = student.fit(
        data.train(epochs=args.epochs),
        epochs=args.epochs,
        steps_per_epoch=data.steps_per_epoch,
        shuffle=False,
        verbose=0,
    )
    trained = time.process_time() - start
    snap_biases(student, data.train(epochs=1).take(STATISTICS))
    test = right(student, data.test())
    shown = [x for x, _ in data.test().take(VERIFIED // BATCH).as_numpy_iterator()]
    with TemporaryDirectory() as folder:
        report = export_tflite(
            student,
            Path(folder) / "student.tflite",
            verify_data=np.concatenate(shown),
            latency_runs=0,
        )
    return {
        "test": round(float(test.mean()), 6),
        "loss": round(fitted.history["loss"][-1], 6),
        "seconds": round(trained, 1),
        "codes_equal": all(layer.codes_equal for layer in report.layers),
        "bytes": dict(report.storage_bytes),
        "right": base64.b64encode(np.packbits(test).tobytes()).decode(),
    }


def main() -> None:
    """Run what has not been run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="float CIFAR-10 network, 0..255")
    parser.add_argument("--data_dir", help="TFDS folder that holds cifar10")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="such as lsq-3")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if args.output.exists():
        lines = map(json.loads, args.output.read_text().splitlines())
        done = {(r["method"], r["bits"], r["seed"], r["epochs"]) for r in lines}
    for bits in BITS:
        for method in METHODS:
            if args.only and f"{method}-{bits}" not in args.only:
                continue
            if (method, bits, args.seed, args.epochs) in done:
                continue
            row = {
                "method": method,
                "bits": bits,
                "seed": args.seed,
                "epochs": args.epochs,
                **train(args, method, bits),
            }
            with args.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({k: v for k, v in row.items() if k != "right"}, flush=True)


if __name__ == "__main__":
    main()
