import keras
import numpy as np
import pytest
from gmpq_tf.export.stage import Stage
from gmpq_tf.train import loop
from gmpq_tf.train.loop import (
    EpochBackup,
    MetricsLog,
    TrainingDivergedError,
    fit_epochs,
)

from gmpq_tf.data import load_dataset
from gmpq_tf.files import append_jsonl, read_jsonl


def compiled(learning_rate=1e-3):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, 15)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss)
    return model


def cut_at(epoch, step):
    """Cuts the power in the middle of an epoch."""

    class Cut(keras.callbacks.Callback):
        def on_epoch_begin(self, number, logs=None):
            self.now = number

        def on_train_batch_end(self, batch, logs=None):
            if (self.now, batch) == (epoch, step):
                raise KeyboardInterrupt

    return Cut()


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path, digits, quiet):
    dataset = load_dataset(digits)
    whole, cut = Stage(tmp_path, "whole"), Stage(tmp_path, "cut")
    first = compiled()
    fit_epochs(first, dataset, whole, 3, quiet)
    with pytest.raises(KeyboardInterrupt):
        fit_epochs(compiled(), dataset, cut, 3, quiet, [cut_at(2, 1)])
    second = compiled()
    fit_epochs(second, dataset, cut, 3, quiet)
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    logs = [read_jsonl(stage.folder / "metrics.jsonl") for stage in (whole, cut)]
    for line in logs[0] + logs[1]:
        assert line.pop("seconds") > 0
    assert logs[0] == logs[1]
    assert [line["epoch"] for line in logs[1]] == [0, 1, 2]


def test_metrics_name_the_learning_rate_and_validation(tmp_path, digits, quiet):
    stage = Stage(tmp_path, "stage")
    fit_epochs(compiled(), load_dataset(digits), stage, 1, quiet)
    (line,) = read_jsonl(stage.folder / "metrics.jsonl")
    assert {"loss", "val_loss", "learning_rate", "seconds"} < set(line)


def test_epochs_to_come_are_removed_from_the_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epoch in range(4):
        append_jsonl(path, {"epoch": epoch})
    MetricsLog(path, start_epoch=2)
    assert read_jsonl(path) == [{"epoch": 0}, {"epoch": 1}]


def test_nan_stops_training_and_keeps_the_last_epoch(tmp_path, digits, quiet):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kernel = self.model.weights[0]
                kernel.assign(kernel * np.nan)

    stage = Stage(tmp_path, "stage")
    with pytest.raises(TrainingDivergedError, match="step 1 of epoch 2"):
        fit_epochs(compiled(), load_dataset(digits), stage, 3, quiet, [Poison()])
    backup = stage.backup
    assert EpochBackup(backup).epoch == 1
    with np.load(backup, allow_pickle=False) as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
    assert len(read_jsonl(stage.folder / "metrics.jsonl")) == 1


def test_a_backup_of_other_weights_is_refused(tmp_path, digits, quiet):
    stage, dataset = Stage(tmp_path, "stage"), load_dataset(digits)
    fit_epochs(compiled(), dataset, stage, 1, quiet)
    other = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    other.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="backup must be of the model"):
        fit_epochs(other, dataset, stage, 2, quiet)


def test_both_optimizers_of_a_search_are_backed_up():
    model = compiled()
    extra = keras.optimizers.SGD(0.1, momentum=0.9)
    extra.build(model.trainable_variables[:1])
    model.importance_optimizer = extra
    found = {id(variable) for variable in loop.training_variables(model)}
    wanted = [*model.weights, *model.optimizer.variables, *extra.variables]
    assert {id(variable) for variable in wanted} <= found
