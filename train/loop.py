"""Training that logs each epoch, survives interruption and stops at NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from gmpq_tf.export.stage import RunConfig, Stage

from gmpq_tf.cost import count_cost
from gmpq_tf.data import Dataset
from gmpq_tf.files import append_jsonl, read_jsonl, replace_file
from gmpq_tf.policy import BitwidthPolicy


class TrainingDivergedError(ValueError):
    """The loss became NaN or infinite."""


class MetricsLog(keras.callbacks.Callback):
    """Adds a line to `metrics.jsonl` after each epoch.

    Args:
        path: the file.
        start_epoch: first epoch to come; lines of it and of later ones are removed.
    """

    def __init__(self, path: Path, start_epoch: int = 0) -> None:
        super().__init__()
        self.path, self.started = path, 0.0
        kept = [line for line in read_jsonl(path) if line["epoch"] < start_epoch]
        path.unlink(missing_ok=True)
        for line in kept:
            append_jsonl(path, line)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the line."""
        seconds = round(time.perf_counter() - self.started, 2)
        values = {key: float(value) for key, value in (logs or {}).items()}
        values["learning_rate"] = float(self.model.optimizer.learning_rate)
        append_jsonl(self.path, {"epoch": epoch, **values, "seconds": seconds})


class EpochBackup(keras.callbacks.Callback):
    """Saves after each epoch all that training depends on, and restores it.

    Unlike `keras.callbacks.BackupAndRestore` it tells the epoch before `fit`, so that
    the data can start there, keeps the state of every optimizer and random number
    generator, and replaces the old state only by a whole new one.

    Args:
        path: the `.npz` file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def epoch(self) -> int:
        """The first epoch not in the backup; 0 where there is none."""
        if not self.path.exists():
            return 0
        with np.load(self.path, allow_pickle=False) as arrays:
            return int(arrays["epoch"])

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the backup, if there is one."""
        if not self.path.exists():
            return
        variables = training_variables(self.model)
        with np.load(self.path, allow_pickle=False) as arrays:
            self._check(arrays, variables)
            for index, variable in enumerate(variables):
                variable.assign(arrays[str(index)])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replaces the backup."""
        values = [variable.numpy() for variable in training_variables(self.model)]
        arrays = {str(index): value for index, value in enumerate(values)}
        with replace_file(self.path) as temporary:
            np.savez(temporary, epoch=np.int64(epoch + 1), **arrays)

    def _check(self, arrays: Any, variables: list) -> None:
        shapes = [tuple(variable.shape) for variable in variables]
        stored = [arrays[str(i)].shape for i in range(len(arrays.files) - 1)]
        if shapes != stored:
            raise ValueError(
                "A backup must be of the model that is trained. "
                f"Received: {self.path}, of other weights. "
                "Use --overwrite to start the stage again."
            )


class StopAtNaN(keras.callbacks.Callback):
    """Ends training with an error as soon as the loss is not a finite number.

    The weights of the last whole epoch remain in the backup.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch, for the message."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Looks at the loss."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                "The loss must stay a finite number. "
                f"Received: loss={loss} at step {batch + 1} of epoch {self.epoch + 1}. "
                "The state after the last whole epoch is kept. Lower --learning_rate "
                "and start again with --overwrite; check the images for NaN."
            )


def training_variables(model: keras.Model) -> list:
    """All variables training depends on: weights, random states, optimizer states.

    Args:
        model: a compiled model, maybe with an `importance_optimizer`.

    Returns:
        The variables, each once, in a stable order.
    """
    model.optimizer.build(model.trainable_variables)
    optimizers = [model.optimizer, getattr(model, "importance_optimizer", None)]
    variables = list(model.variables)
    for optimizer in optimizers:
        variables += optimizer.variables if optimizer is not None else []
    metrics = {id(variable) for variable in model.metrics_variables}
    unique = {id(variable): variable for variable in variables}
    return [v for key, v in unique.items() if key not in metrics]


def fit_epochs(
    model: keras.Model,
    dataset: Dataset,
    stage: Stage,
    epochs: int,
    run: RunConfig,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains a compiled model, from where an interrupted run of the stage stopped.

    Args:
        model: a compiled model.
        dataset: its images; the validation split may be empty.
        stage: whose folder gets metrics.jsonl and the backup.
        epochs: the epoch to stop at.
        run: how to show progress.
        callbacks: more callbacks, called before the others.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
    """
    backup = EpochBackup(stage.backup)
    start = backup.epoch
    log = MetricsLog(stage.folder / "metrics.jsonl", start)
    model.fit(
        dataset.train(start),
        steps_per_epoch=dataset.steps_per_epoch,
        initial_epoch=start,
        epochs=epochs,
        validation_data=dataset.validation() if dataset.sizes["validation"] else None,
        callbacks=[*callbacks, StopAtNaN(), log, backup],
        shuffle=False,  # the data set shuffles by itself
        verbose=run.verbose,
    )


def save_model(model: keras.Model, path: Path) -> None:
    """Writes a model without the state of its training.

    Args:
        model: a functional or Sequential model of one input and one output.
        path: the .keras file to make or to replace.
    """
    plain = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    with replace_file(path) as temporary:
        plain.save(temporary)


def policy_results(
    stage: Stage, model: keras.Model, policy: BitwidthPolicy
) -> dict[str, Any]:
    """Returns the cost of a stage's policy and the metrics of its last epoch.

    Args:
        stage: whose folder holds metrics.jsonl.
        model: the float model.
        policy: of that model.

    Returns:
        Plain JSON values: bit_ops, weight_bytes, last_epoch.
    """
    cost = count_cost(model, policy)
    epochs = read_jsonl(stage.folder / "metrics.jsonl")
    return {
        "bit_ops": cost.bit_ops,
        "weight_bytes": cost.weight_bytes,
        "last_epoch": epochs[-1] if epochs else None,
    }
