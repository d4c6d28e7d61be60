"""The metrics of each epoch in a stage's folder: JSON lines, CSV, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.files import append_jsonl, read_jsonl, write_atomic
from gmpq_tf.report.layout import METRICS, TENSORBOARD

VALIDATION = "val_"


class MetricsLog(keras.callbacks.Callback):
    """Adds a line to `metrics.jsonl` after each epoch; `metrics.csv` holds the same.

    Args:
        path: the `.jsonl` file; the `.csv` file lies beside it.
        start_epoch: epoch that training starts at; lines of this and later epochs,
            left by an interrupted run, are removed.

    Raises:
        ValueError: an epoch before `start_epoch` has no line.
    """

    def __init__(self, path: Path, start_epoch: int = 0) -> None:
        super().__init__()
        self.path, self.started = path, 0.0
        lines = read_jsonl(path)
        kept = lines[:start_epoch]
        _check_epochs(path, kept, start_epoch)
        if kept:
            write_atomic(path, "".join(f"{json.dumps(line)}\n" for line in kept))
            write_csv(path.with_suffix(".csv"), kept)
        else:
            path.unlink(missing_ok=True)
            path.with_suffix(".csv").unlink(missing_ok=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = round(perf_counter() - self.started, 2)
        values = {key: float(value) for key, value in (logs or {}).items()}
        values["learning_rate"] = float(np.asarray(self.model.optimizer.learning_rate))
        append_jsonl(self.path, {"epoch": epoch, **values, "seconds": seconds})
        write_csv(self.path.with_suffix(".csv"), read_jsonl(self.path))


def _check_epochs(path: Path, lines: Sequence[Mapping], count: int) -> None:
    if [line.get("epoch") for line in lines] != list(range(count)):
        raise ValueError(
            "The metrics must have one line for each epoch of the backup. Received: "
            f"{path}, {len(lines)} of {count}. Put the file back, or use "
            "--overwrite to start the stage again."
        )


class TensorBoardLog(keras.callbacks.Callback):
    """Writes the content of `metrics.jsonl` as TensorBoard events, one step per epoch.

    Tags and folders are those of `keras.callbacks.TensorBoard`: `epoch_loss` in
    `train` and in `validation`. Unlike there, a resumed run contains no step twice:
    both folders are rebuilt from the file when training starts.

    Args:
        folder: where the events go.
        metrics: the `metrics.jsonl` of the same run; the callback that writes it must
            be called before this one.
    """

    def __init__(self, folder: Path, metrics: Path) -> None:
        super().__init__()
        self.folder, self.metrics = folder, metrics

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts new event files and writes the epochs already finished into them."""
        for part in ("train", "validation"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        for record in read_jsonl(self.metrics):
            self._write(record)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._write(read_jsonl(self.metrics)[-1])

    def on_train_end(self, logs: Any = None) -> None:
        for writer in self._writers.values():
            writer.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        for key, value in record.items():
            if key == "epoch" or value is None:
                continue
            held_out = key.startswith(VALIDATION)
            with self._writer("validation" if held_out else "train").as_default():
                tag = f"epoch_{key.removeprefix(VALIDATION)}"
                tf.summary.scalar(tag, value, step=record["epoch"])
        for writer in self._writers.values():
            writer.flush()

    def _writer(self, name: str) -> tf.summary.SummaryWriter:
        if name not in self._writers:
            path = str(self.folder / name)
            self._writers[name] = tf.summary.create_file_writer(path)
        return self._writers[name]


def metrics_logs(
    folder: Path, start_epoch: int, tensorboard: bool = False
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that keep the metrics of a stage.

    Args:
        folder: folder of the stage.
        start_epoch: epoch that training starts at; records of this and later epochs
            are removed.
        tensorboard: whether to write TensorBoard events too.
    """
    metrics = folder / METRICS
    logs: list[keras.callbacks.Callback] = [MetricsLog(metrics, start_epoch)]
    if tensorboard:
        logs.append(TensorBoardLog(folder / TENSORBOARD, metrics))
    return logs


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Writes records as a CSV table; the file is replaced as a whole.

    Args:
        path: the file to create or to replace.
        records: one row each. Columns are all keys, in the order in which they first
            appear; a cell is empty where a record lacks the key or has None.

    Returns:
        The path written.
    """
    columns = dict.fromkeys(key for record in records for key in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return write_atomic(path, text.getvalue())
