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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from transfer_bank_network import (
    BUDGETS,
    CALIBRATED,
    PROXIES,
    SPACE,
    TRAINED,
    Bits,
    Images,
    Network,
    compiled,
    cross_entropy,
    divergence,
    drawn,
    imagenet,
    linear_head,
    random_policy,
)
from transfer_bank_values import chosen_policies

import gmpq_tf as gmpq
from gmpq_tf.search.journal import Journal
from gmpq_tf.search.meter import Meter
from gmpq_tf.search.strategies.loss_delta import changes

POLICIES = 64  # random ones of each budget
ROUND = 32  # images that all choices are measured on before any is on more
SOURCES = (*PROXIES, "target")


def main() -> None:
    """Measure one part of the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("bank", "values", "chosen", "compare"))
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2, help="of 32 images, of values")
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
        self.network = Network(weights(args), own[:CALIBRATED])
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


def values(args: argparse.Namespace) -> None:
    """Measure every choice on every source, some images at a time."""
    sources = [Source(args, name) for name in SOURCES]
    for number in range(args.rounds):
        for source in sources:
            source.measure(number)


class Source:
    """Images that choices are valued on: a proxy, or the target's other half.

    Args:
        args: of the command line.
        name: of `SOURCES`.
    """

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        self.args, self.name = args, name
        if name == "target":
            images, after = imagenet(args.shared / "data")[1], CALIBRATED
        else:
            images, after = PROXIES[name](args.shared / "data"), CALIBRATED + TRAINED
        self.learned, self.held = images[CALIBRATED:after], images[after:]
        self.network = Network(weights(args), images[:CALIBRATED])
        identity = {
            "source": name,
            "images": images.digest(),
            "space": SPACE.to_config(),
            "trained": TRAINED,
        }
        path = args.workdir / f"values_{name}.jsonl"
        self.journal = Journal(path, identity, Meter())
        self._built = False

    def measure(self, number: int) -> None:
        """Measure all choices on one more part of the images."""
        rows = slice(number * ROUND, (number + 1) * ROUND)
        images = self.held[rows]
        if len(images) < ROUND:
            print(f"{self.name}: only {len(self.held)} images", flush=True)
            return
        candidates = self.network.candidates
        context = {n: (max(w), max(a)) for n, (w, a) in candidates.items()}
        started = time.time()
        self.journal.once(["float", number], lambda: self.of_float(images))
        self.journal.once(["", number], lambda: self.one(context, images))
        for layer, which, width, bits in changes(context, candidates):
            if bits != context:
                key = [f"{layer} {'WA'[which]}{width}", number]
                self.journal.once(key, lambda b=bits: self.one(dict(b), images))
        print(f"{self.name} {number}: {time.time() - started:.0f} s", flush=True)

    def build(self) -> None:
        """Build the networks, and train the classifier of a proxy."""
        started = time.process_time()
        network = self.network
        network.build()
        backbone, head = network.teacher
        teachers, students = {"imagenet": head}, {"imagenet": network.student[1]}
        if self.name == "target":
            teachers["own"], students["own"] = head, network.student[1]
        else:
            pooled = np.concatenate(
                [np.asarray(backbone(part.inputs, training=False)).mean((1, 2))
                 for part in self.learned.batches()]
            )  # fmt: skip
            shape = tuple(backbone.output.shape[1:])
            own = linear_head(pooled, self.learned.labels, shape)
            teachers["own"] = students["own"] = own
        self.by_teacher = compiled(backbone, teachers)
        self.by_student = compiled(network.student[0], students)
        self._built = True
        print(f"{self.name}: ready after {time.process_time() - started:.0f} s")

    def of_float(self, images: Images) -> dict[str, Any]:
        """What the float networks say, as plain JSON."""
        return {
            head: {
                "maps": plain(maps),
                "right": "".join(
                    str(int(t)) for t in np.argmax(scores, -1) == images.labels
                )
                if head == "own"
                else "",
            }
            for head, (scores, maps) in self.teacher(images).items()
        }

    def teacher(self, images: Images) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Head -> scores and maps of the float networks."""
        if not self._built:
            self.build()
        inputs, first = tf.constant(images.inputs), images.labels.astype("int64")
        zeros = {"imagenet": tf.zeros(len(first), tf.int64), "own": tf.constant(first)}
        predicted = np.argmax(self.by_teacher(inputs, zeros)["imagenet"][0], -1)
        self.classes = {**zeros, "imagenet": tf.constant(predicted)}
        found = self.by_teacher(inputs, self.classes)
        return {h: (np.asarray(s), np.asarray(m)) for h, (s, m) in found.items()}

    def one(self, bits: Bits, images: Images) -> dict[str, Any]:
        """What a policy does on the images, as plain JSON."""
        if getattr(self, "_seen", None) is not images:
            self.scores, self._seen = self.teacher(images), images
        started = time.process_time()
        self.network.choose(bits)
        found = self.by_student(tf.constant(images.inputs), self.classes)
        record: dict[str, Any] = {}
        for head, (scores, maps) in found.items():
            scores = np.asarray(scores)
            own = {"divergence": divergence(scores, self.scores[head][0])}
            if head == "own":
                own["task"] = cross_entropy(scores, images.labels)
            record[head] = {k: plain(v) for k, v in own.items()}
            record[head]["maps"] = plain(maps)
        return {**record, "cpu_seconds": round(time.process_time() - started, 3)}


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


def mean(digits: str) -> float:
    """Share of ones."""
    return digits.count("1") / len(digits)


def plain(array: Any) -> list[float]:
    """As a list of numbers of five digits."""
    return [float(f"{v:.5g}") for v in np.asarray(array, "float64").ravel()]


def key_of(bits: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
    """A policy as the key of a journal."""
    return {name: list(pair) for name, pair in bits.items()}


def weights(args: argparse.Namespace) -> Path:
    """The file of the float model."""
    return args.shared / "weights/mobilenet_v2_imagenet.weights.h5"


if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    main()
