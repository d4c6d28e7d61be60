"""Does attribution carry a policy to other data better than the loss? MobileNetV2.

    python benchmarks/transfer_bank.py bank --shared=SHARED --workdir=runs/transfer_bank
    python benchmarks/transfer_bank.py values --shared=SHARED --workdir=...
    python benchmarks/transfer_bank.py chosen --shared=SHARED --workdir=...
    python benchmarks/transfer_bank_report.py --shared=SHARED --workdir=... \
        --output=results/transfer_bank

`bank` measures 64 random policies at each budget, and the uniform one, without training
on 250 ImageNet photographs that nothing else sees. `values` measures, on the other 250
and on proxies, what each choice adds to every risk. `chosen` measures the policies that
the values choose on the bank's photographs. Everything measured is a line of a journal
in the workdir, which the same command goes on with. SHARED holds data/tfds,
data/flowers17 and weights/mobilenet_v2_imagenet.weights.h5.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from transfer_bank_network import (
    BUDGETS,
    CALIBRATED,
    SPACE,
    Bits,
    Network,
    divergence,
    drawn,
    imagenet,
    key_of,
    mean,
    plain,
    random_policy,
    weights,
)
from transfer_bank_sources import SOURCES, values
from transfer_bank_values import chosen_policies

import gmpq_tf as gmpq
from gmpq_tf.search.journal import Journal
from gmpq_tf.search.meter import Meter

POLICIES = 64  # random ones of each budget


def main() -> None:
    """Measure one part of the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("bank", "values", "chosen", "compare"))
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2, help="of 32 images, of values")
    parser.add_argument("--source", action="append", choices=SOURCES, help="of values")
    parser.add_argument("--policies", type=int, default=POLICIES)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    args.workdir.mkdir(parents=True, exist_ok=True)
    if args.part == "values":
        values(args)
    else:
        Bank(args).measure(args.part)


class Bank:
    """Policies on the photographs that only test.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.tested, own = imagenet(args.shared / "data")
        self.network = Network(weights(args.shared), own[:CALIBRATED])
        identity = {
            "images": self.tested.digest(),
            "calibration": self.network.calibration.digest(),
            "space": SPACE.to_config(),
        }
        self.journal = Journal(args.workdir / "bank.jsonl", identity, Meter())
        self.teacher: np.ndarray | None = None

    def measure(self, part: str) -> None:
        """Measure the policies of a part of the study.

        Args:
            part: "bank", "chosen", or "compare" (the time of two ways).
        """
        if part == "compare":
            self.compare()
            return
        policies = (
            drawn(self.network, self.args.policies) if part == "bank" else self.chosen()
        )
        for name, bits in policies:
            found = self.journal.once(key_of(bits), lambda b=bits: self.one(b))
            print(
                f"{name}: top-1 {100 * mean(found['right']):.1f}, top-5 "
                f"{100 * mean(found['top5']):.1f}, divergence "
                f"{np.mean(found['divergence']):.3f}, {found['cpu_seconds']} s",
                flush=True,
            )

    def chosen(self) -> Iterator[tuple[str, Bits]]:
        """The policies that values choose; their names are kept in the workdir."""
        found = dict(chosen_policies(self.args.workdir, self.network))
        text = json.dumps({name: key_of(bits) for name, bits in found.items()})
        (self.args.workdir / "chosen.json").write_text(text)
        yield from found.items()

    def one(self, bits: Bits) -> dict[str, Any]:
        """What a policy does on every photograph, as plain JSON."""
        if self.teacher is None:
            self.prepare()
        started = time.process_time()
        self.network.choose(bits)
        scores = np.concatenate([
            np.asarray(self.forward(tf.constant(part.inputs)))
            for part in self.tested.batches()
        ])  # fmt: skip
        assert self.teacher is not None
        return {
            **risks_of(scores, self.teacher, self.tested.labels),
            "cpu_seconds": round(time.process_time() - started, 2),
        }

    def prepare(self) -> None:
        """Build the hypernet, and say what the float model does."""
        started = time.process_time()
        self.network.build()
        self.forward = tf.function(
            lambda images: self.network.hypernet(images, training=False),
            reduce_retracing=True,
        )
        model = self.network.model
        self.teacher = np.concatenate(
            [np.asarray(model(part.inputs, training=False))
             for part in self.tested.batches()]
        )  # fmt: skip
        found = risks_of(self.teacher, self.teacher, self.tested.labels)
        print(
            f"float: top-1 {100 * mean(found['right']):.1f}; hypernet ready after "
            f"{time.process_time() - started:.0f} s",
            flush=True,
        )
        self.journal.once("float", lambda: found)

    def compare(self) -> None:
        """A student of its own against the hypernet, of one random policy."""
        bits = random_policy(self.network, BUDGETS[1], 0)
        by_hypernet = [self.one(bits) for _ in range(2)][-1]  # traced before
        started = time.process_time()
        policy = gmpq.BitwidthPolicy(self.network.model.name, bits)
        student = gmpq.quantize_model(self.network.model, policy)
        parts = [b.inputs for b in self.network.calibration.batches()]
        gmpq.calibrate(student, parts)
        built = time.process_time() - started
        run = tf.function(lambda x: student(x, training=False))
        scores = np.concatenate([
            np.asarray(run(tf.constant(part.inputs))) for part in self.tested.batches()
        ])  # fmt: skip
        assert self.teacher is not None
        by_student = risks_of(scores, self.teacher, self.tested.labels)
        found = [by_hypernet, by_student]
        top1 = [f"{100 * mean(own['right']):.1f}" for own in found]
        off = [f"{np.mean(own['divergence']):.3f}" for own in found]
        print(
            f"hypernet {by_hypernet['cpu_seconds']} s, student "
            f"{time.process_time() - started:.1f} s, {built:.1f} of them to build; "
            f"top-1 {' and '.join(top1)}, divergence {' and '.join(off)}",
            flush=True,
        )


def risks_of(
    scores: np.ndarray, teacher: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Of each photograph whether it is right, among the first five, and how far off."""
    order = np.argsort(-scores, -1)[:, :5]
    return {
        "right": "".join(str(int(t)) for t in order[:, 0] == labels),
        "top5": "".join(str(int(t)) for t in (order == labels[:, None]).any(-1)),
        "divergence": plain(divergence(scores, teacher)),
    }


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    main()
