"""TensorBoard events of a stage's results: policy, values, importances, maps."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.files import append_jsonl, read_jsonl, write_atomic
from gmpq_tf.limits import shown_in
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import EPOCH_IMPORTANCES, TENSORBOARD

SIDES = ("weights", "activations")
SMALLEST_SIDE = 96  # pixels; smaller images are enlarged by a whole factor
Layers = Mapping[str, Mapping[str, Mapping[str, Any]]]


def new_writer(folder: Path, part: str) -> tf.summary.SummaryWriter:
    """Returns a new writer of one TensorBoard run, after deleting its earlier events.

    Args:
        folder: the stage's folder `tensorboard`.
        part: name of the run in it. Its earlier events are deleted, so that no step
            occurs twice.
    """
    shutil.rmtree(folder / part, ignore_errors=True)
    return tf.summary.create_file_writer(str(folder / part))


@contextlib.contextmanager
def events(folder: Path, part: str) -> Iterator[None]:
    """Writes the summaries of the block as one run of TensorBoard; see `new_writer`."""
    writer = new_writer(folder, part)
    with writer.as_default():
        yield
    writer.close()


class ImportancesLog(keras.callbacks.Callback):
    """Keeps the importances of each epoch in `importances.jsonl` and as events.

    Args:
        folder: folder of the stage.
        describe: returns the present layers of `importances.json`.
        start_epoch: epoch that training starts at; records of this and later epochs
            are removed.
    """

    def __init__(
        self, folder: Path, describe: Callable[[], Mapping[str, Any]], start_epoch: int
    ) -> None:
        super().__init__()
        self._folder, self._describe, self._start = folder, describe, start_epoch
        self._path = folder / EPOCH_IMPORTANCES

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts new event files and writes the epochs already finished into them."""
        kept = [r for r in read_jsonl(self._path) if r["epoch"] < self._start]
        write_atomic(self._path, "".join(f"{json.dumps(r)}\n" for r in kept))
        self._writer = new_writer(self._folder / TENSORBOARD, "importances")
        for record in kept:
            self._write(record)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        record = {"epoch": epoch, "layers": self._describe()}
        append_jsonl(self._path, record)
        self._write(record)

    def on_train_end(self, logs: Any = None) -> None:
        self._writer.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._writer.as_default():
            write_importances(record["layers"], record["epoch"])
        self._writer.flush()


def write_policy(policy: BitwidthPolicy) -> None:
    """Writes a policy as a table, with the budgets that it keeps, as text `policy`."""
    tf.summary.text("policy", policy_table(policy), step=0)


def policy_table(policy: BitwidthPolicy) -> str:
    """Formats a policy as Markdown: one row per layer, one line per budget.

    Args:
        policy: the policy; budgets are read from its provenance if a search made it.
    """
    lines = ["| layer | weight bits | activation bits |", "|---|---|---|"]
    lines += [
        f"| {name} | {policy[name].weight_bits} | {policy[name].activation_bits} |"
        for name in policy
    ]
    config = policy.made_by.get("config")
    limits = config.get("limits") if isinstance(config, Mapping) else None
    for each in limits or ():
        spent, allowed = (shown_in(each["unit"], each[k]) for k in ("cost", "limit"))
        share = 100 * each["cost"] / each["limit"]
        said = f"{each['resource']}: {spent} of {allowed} ({share:.2f} %)"
        lines += ["", f"Budget {said}, given as {each['said']}"]
    return "\n".join(lines)


def write_values(values: Layers) -> None:
    """Writes the value of each choice, over all layers and layer by layer.

    The step of an event is the number of bits. `values/weights` is a histogram over the
    layers, `values/weights/LAYER` a scalar; for activations likewise.

    Args:
        values: as in `values.json`: layer -> side -> bits -> value, more is better.
    """
    for side in SIDES:
        of_bits: dict[int, list[float]] = {}
        for name, sides in values.items():
            for bits, value in sides[side].items():
                if value is None or not np.isfinite(value):
                    continue
                of_bits.setdefault(int(bits), []).append(value)
                tf.summary.scalar(f"values/{side}/{name}", value, step=int(bits))
        for step, found in sorted(of_bits.items()):
            tf.summary.histogram(f"values/{side}", found, step=step)


def write_importances(layers: Mapping[str, Any], epoch: int) -> None:
    """Writes the probability of each bit-width, as one histogram per tensor.

    Args:
        layers: the layers of `importances.json`.
        epoch: the step.
    """
    from tensorboard.plugins.histogram.metadata import create_summary_metadata

    metadata = create_summary_metadata(None, "Probability of each number of bits.")
    for name, described in layers.items():
        for side in SIDES:
            one = side.removesuffix("s")
            bits = np.asarray(described[f"{one}_bits"], np.float64)
            share = np.asarray(described[f"{one}_probabilities"], np.float64)
            order = np.argsort(bits)
            buckets = np.stack([bits - 0.5, bits + 0.5, share], axis=1)[order]
            tag = f"importances/{name}/{side}"
            tf.summary.write(tag, buckets, step=epoch, metadata=metadata)


def write_maps(
    images: np.ndarray, maps: Mapping[str, np.ndarray], step: int = 0
) -> None:
    """Writes attribution maps beside their images.

    Args:
        images: [N, H, W, C], uint8.
        maps: name -> maps [N, H, W] of 0 or more, those of the float model first; each
            map is shown relative to its own largest value.
        step: the step.
    """
    shown = side_by_side(images, list(maps.values()))
    what = f"Image, then the attribution maps of: {', '.join(maps)}."
    tf.summary.image(
        "attribution", shown, step=step, max_outputs=len(shown), description=what
    )


def side_by_side(images: np.ndarray, maps: Sequence[np.ndarray]) -> np.ndarray:
    """Returns images with their maps to the right.

    Args:
        images: [N, H, W, 1 or 3], uint8.
        maps: each [N, H, W], 0 or more.

    Returns:
        [N, H', W', 3], uint8, enlarged by an integer factor if they are small.
    """
    colours = np.broadcast_to(images, (*images.shape[:3], 3))
    row = np.concatenate([colours, *map(heat, maps)], axis=2)
    factor = -(-SMALLEST_SIDE // images.shape[1])
    return row.repeat(factor, axis=1).repeat(factor, axis=2)


def heat(maps: np.ndarray) -> np.ndarray:
    """Returns maps in colours: black over red and yellow to white for the largest.

    Args:
        maps: [N, H, W], 0 or more.

    Returns:
        [N, H, W, 3], uint8.
    """
    largest = maps.max(axis=(1, 2), keepdims=True)
    share = maps / np.where(largest > 0, largest, 1)
    colours = np.clip(3 * share[..., None] - np.arange(3), 0, 1)
    return np.rint(255 * colours).astype(np.uint8)
