"""What each choice adds to every risk on a source of images, for `transfer_bank.py`."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import tensorflow as tf
from transfer_bank_network import (
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
    imagenet,
    linear_head,
    plain,
    weights,
)

from gmpq_tf.search.journal import Journal
from gmpq_tf.search.meter import Meter
from gmpq_tf.search.strategies.loss_delta import changes

ROUND = 32  # images that all choices are measured on before any is on more
SOURCES = (*PROXIES, "target")


def values(args: argparse.Namespace) -> None:
    """Measure every choice on every source, some images at a time."""
    sources = [Source(args, name) for name in args.source or SOURCES]
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
        self.network = Network(weights(args.shared), images[:CALIBRATED])
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
