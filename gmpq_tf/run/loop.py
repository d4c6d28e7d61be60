"""Training that logs each epoch, survives interruption and stops at NaN."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.cost import count_cost
from gmpq_tf.data import Dataset
from gmpq_tf.distribution import support_workers, synchronized_statistics
from gmpq_tf.files import (
    DamagedFileError,
    check_space,
    read_arrays,
    read_jsonl,
    replace_file,
    write_arrays,
)
from gmpq_tf.first_trace import build_before_tracing
from gmpq_tf.graph import fill, functional_of, read_graph
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import METRICS
from gmpq_tf.run.devices import is_chief, training_batches
from gmpq_tf.run.metrics_log import metrics_logs
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.run.stage import Stage, backup_before
from gmpq_tf.search import StopOnDivergence, TrainingProgress
from gmpq_tf.search.divergence import listed, not_finite
from gmpq_tf.transform.precision import Precision, computing_in

REMEDY = (
    "The state after the last whole epoch is kept. Lower --learning_rate and start "
    "again with --overwrite; check the images for NaN and the labels for their range."
)


class TrainingDivergedError(ValueError):
    """The loss became NaN or infinite."""


class EpochBackup(keras.callbacks.Callback):
    """Saves all state that training depends on after each epoch, and restores it.

    Differences from `keras.callbacks.BackupAndRestore`:

    - `epoch` is known before `fit` is called, so that the data can start there.
    - The state of every optimizer and random number generator is kept.
    - A new backup is written under a temporary name and then renamed, so a killed
      process never leaves half a backup.
    - The backup of the epoch before is kept too, and is used if the last is damaged.

    Args:
        path: the `.npz` file; the backup of the epoch before lies beside it.
        writes: False to restore only, as all workers except the chief do.

    Raises:
        DamagedFileError: there are backups, but none of them can be read.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        super().__init__()
        self.path, self.writes = path, writes
        self._state = read_backup(path)
        # The first epoch not in the backup; 0 where there is none.
        self.epoch = int(self._state.pop("epoch", 0))

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the backup; without one, checks that the disk has room for it."""
        variables = training_variables(self.model)
        if self.epoch:
            self._restore(variables)
        elif self.writes:
            check_space(self.path, sum(v.numpy().nbytes for v in variables))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.writes:
            return
        values = [variable.numpy() for variable in training_variables(self.model)]
        arrays = {str(index): value for index, value in enumerate(values)}
        arrays["epoch"] = np.array(epoch + 1)
        whole = write_arrays(self.path.with_name("next.npz"), arrays)
        if self.path.exists():
            self.path.replace(backup_before(self.path))
        whole.replace(self.path)

    def _restore(self, variables: list) -> None:
        shapes = {str(i): tuple(v.shape) for i, v in enumerate(variables)}
        if shapes != {name: value.shape for name, value in self._state.items()}:
            raise ValueError(
                "A backup must be of the model that is trained. "
                f"Received: {self.path}, of other weights. "
                "Use --overwrite to start the stage again."
            )
        for index, variable in enumerate(variables):
            variable.assign(self._state.pop(str(index)))


def read_backup(path: Path) -> dict[str, np.ndarray]:
    """Reads the backup of a stage, or that of the epoch before if it is damaged.

    Args:
        path: the backup.

    Returns:
        Name -> array of any shape; {} where there is no backup.

    Raises:
        DamagedFileError: there are backups, but none of them can be read.
    """
    damaged = None
    for file in filter(Path.exists, (path, backup_before(path))):
        try:
            arrays = read_arrays(file)
        except DamagedFileError as error:
            damaged = damaged or error
            continue
        if damaged:
            print(f"{damaged}\nGoing on from the epoch before.", file=sys.stderr)
        return arrays
    if damaged:
        raise DamagedFileError(
            f"{damaged} Or use --overwrite to start the stage again."
        ) from damaged
    return {}


def check_weights(model: keras.Model) -> None:
    """Refuses a model whose weights are not finite.

    Raises:
        TrainingDivergedError: a weight is NaN or infinite, which can happen although
            every loss was finite.
    """
    if broken := not_finite(model.weights):
        raise TrainingDivergedError(
            "A trained model must have finite weights. "
            f"Received: not finite: {listed(broken)}. Lower --learning_rate and start "
            "again with --overwrite; check the images for NaN."
        )


def training_variables(model: keras.Model) -> list:
    """Returns all variables training depends on, without those of metrics.

    Args:
        model: a compiled model, which may have a second optimizer in its attribute
            `importance_optimizer`.

    Returns:
        Weights, states of random number generators and of optimizers; each once, in an
        order that is the same in every process.
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
    precision: Precision = "float32",
) -> None:
    """Trains a compiled model, from where an interrupted run of the stage stopped.

    Args:
        model: a compiled model.
        dataset: its images; the validation split may be empty.
        stage: its folder gets metrics.jsonl, metrics.csv and the backup.
        epochs: number of epochs in total, including those of interrupted runs.
        run: how to show progress, and whether to write TensorBoard events.
        callbacks: additional callbacks, called before the built-in ones.
        precision: number format layers compute in; see `computing_in`.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
    """
    chief = is_chief()
    backup = EpochBackup(stage.backup, writes=chief)
    start = backup.epoch
    kind = run.progress if chief else "none"
    progress = TrainingProgress(kind, dataset.config.batch_size)
    watching = [*callbacks, StopOnDivergence(TrainingDivergedError, REMEDY)]
    if chief:
        watching += metrics_logs(stage.folder, start, run.tensorboard)
    if chief and start:
        print(resume_note(stage, start, epochs), flush=True)
    support_workers(model)
    batches = training_batches(dataset, start)
    build_before_tracing(model, batches)
    with (
        synchronized_statistics(model),
        computing_in(model, precision),
        closing(progress),
    ):
        model.fit(
            batches,
            steps_per_epoch=dataset.steps_per_epoch,
            initial_epoch=start,
            epochs=epochs,
            validation_data=(
                dataset.validation() if dataset.sizes["validation"] else None
            ),
            # The display comes last: an epoch is shown only when it is saved.
            callbacks=[*watching, backup, progress],
            shuffle=False,  # the data set shuffles by itself
            verbose=0,
        )


def resume_note(stage: Stage, start: int, epochs: int) -> str:
    """Returns the message that says at which epoch an interrupted stage resumes."""
    if start < epochs:
        return f"{stage.folder} goes on with epoch {start + 1} of {epochs}."
    return f"{stage.folder} has done its {epochs} epochs and is being finished."


def save_model(model: keras.Model, path: Path) -> None:
    """Writes a model without optimizer, loss and metrics.

    Args:
        model: a functional or Sequential model; names and structure of its inputs and
            outputs are kept.
        path: the .keras file to create or to replace.

    Raises:
        TrainingDivergedError: a weight is NaN or infinite.
    """
    check_weights(model)
    plain = _untrained(model)
    with replace_file(path) as temporary:
        plain.save(temporary)


def _untrained(model: keras.Model) -> keras.Model:
    """Returns a model of the same layer objects that was never compiled."""
    graph, functional = read_graph(model), functional_of(model)
    tensors = dict(zip(graph.inputs, functional.inputs, strict=True))
    tensors |= dict(zip(graph.outputs, functional.outputs, strict=True))
    structures = (
        fill(graph.input_structure, tensors),
        fill(graph.output_structure, tensors),
    )
    return keras.Model(*structures, name=model.name)


def policy_results(
    stage: Stage, model: keras.Model, policy: BitwidthPolicy
) -> dict[str, Any]:
    """Returns the cost of a stage's policy and the metrics of its last epoch.

    Args:
        stage: its folder holds metrics.jsonl.
        model: the float model.
        policy: bit-widths of that model.

    Returns:
        Plain JSON values: bit_ops (bit operations per image), weight_bytes, and
        last_epoch (metric name -> value, or None without any epoch).
    """
    cost = count_cost(model, policy)
    epochs = read_jsonl(stage.folder / METRICS)
    return {
        "bit_ops": cost.bit_ops,
        "weight_bytes": cost.weight_bytes,
        "last_epoch": epochs[-1] if epochs else None,
    }
