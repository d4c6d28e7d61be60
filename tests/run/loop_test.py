import contextlib
import resource
import shutil
import sys

import keras
import numpy as np
import pytest

from gmpq_tf.data import load_dataset
from gmpq_tf.files import read_jsonl
from gmpq_tf.run import loop
from gmpq_tf.run.loop import (
    EpochBackup,
    TrainingDivergedError,
    fit_epochs,
    save_model,
)
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.run.stage import Stage, backup_before
from tests.progress_test import Terminal


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


def test_a_run_that_goes_on_says_from_where(tmp_path, digits, quiet, capsys):
    stage, dataset = Stage(tmp_path, "stage"), load_dataset(digits)
    fit_epochs(compiled(), dataset, stage, 1, quiet)
    assert capsys.readouterr().out == ""
    fit_epochs(compiled(), dataset, stage, 2, quiet)
    folder = tmp_path / "stage"
    assert capsys.readouterr().out == f"{folder} goes on with epoch 2 of 2.\n"
    fit_epochs(compiled(), dataset, stage, 2, quiet)
    done = f"{folder} has done its 2 epochs and is being finished.\n"
    assert capsys.readouterr().out == done
    assert [x["epoch"] for x in read_jsonl(folder / "metrics.jsonl")] == [0, 1]


def test_what_is_shown_is_asked_for(tmp_path, digits, capsys):
    stage, dataset = Stage(tmp_path, "stage"), load_dataset(digits)
    fit_epochs(compiled(), dataset, stage, 2, RunConfig(progress="auto"))
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()] == ["epoch", "1/2", "2/2"]
    for row, line in zip(
        shown.splitlines()[1:], read_jsonl(stage.folder / "metrics.jsonl"), strict=True
    ):
        assert float(row.split()[4]) == pytest.approx(line["loss"], rel=1e-3)


def test_training_that_fails_leaves_no_bar(tmp_path, digits, monkeypatch):
    stage, dataset = Stage(tmp_path, "stage"), load_dataset(digits)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(KeyboardInterrupt) as stopped:  # keeps alive what it was in
        fit_epochs(
            compiled(), dataset, stage, 2, RunConfig(progress="auto"), [cut_at(1, 1)]
        )
    assert "Epoch 1/2" in terminal.getvalue()
    assert [line.split()[0] for line in terminal.screen()] == ["epoch", "1/2"]
    assert stopped.traceback


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


@contextlib.contextmanager
def file_size_limit(size):
    """No file of this process may grow beyond so many bytes, as on a full disk."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


def assert_goes_on_as(first, stage, dataset, run):
    second = compiled()
    fit_epochs(second, dataset, stage, 3, run)
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A model after three epochs, and the folder of a run cut in the third."""
    folder, dataset = tmp_path_factory.mktemp("trained"), load_dataset(digits)
    run, first = RunConfig(progress="none"), compiled()
    fit_epochs(first, dataset, Stage(folder, "whole"), 3, run)
    with pytest.raises(KeyboardInterrupt):
        fit_epochs(compiled(), dataset, Stage(folder, "cut"), 3, run, [cut_at(2, 1)])
    return first, folder / "cut"


@pytest.fixture
def cut(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "cut")
    return Stage(tmp_path, "cut")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_damaged_backup_gives_way_to_the_one_before(
    trained, cut, digits, quiet, capsys
):
    cut.backup.write_bytes(cut.backup.read_bytes()[:-1000])
    assert EpochBackup(cut.backup).epoch == 1 == cut.epochs
    assert "state.npz, which is truncated or damaged" in capsys.readouterr().err
    assert_goes_on_as(trained[0], cut, load_dataset(digits), quiet)


def test_a_run_killed_while_backups_change_places_goes_on(trained, cut, digits, quiet):
    cut.backup.replace(backup_before(cut.backup))
    assert cut.started and EpochBackup(cut.backup).epoch == 2
    assert_goes_on_as(trained[0], cut, load_dataset(digits), quiet)


def test_without_a_whole_backup_the_remedy_is_named(cut, digits, quiet):
    content = cut.backup.read_bytes()
    log = (cut.folder / "metrics.jsonl").read_text()
    drawn = np.random.default_rng(0).integers(0, len(content), 200)
    for size in (0, 1, *drawn, len(content) - 1):
        for path in (cut.backup, backup_before(cut.backup)):
            path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"state\.npz.*damaged.*--overwrite"):
            EpochBackup(cut.backup)
    with pytest.raises(ValueError, match="--overwrite"):
        fit_epochs(compiled(), load_dataset(digits), cut, 3, quiet)
    assert (cut.folder / "metrics.jsonl").read_text() == log


def test_a_full_disk_leaves_the_last_backup(trained, cut, digits, quiet):
    before, dataset = names(cut.backup.parent), load_dataset(digits)
    limit = cut.backup.stat().st_size // 2
    with pytest.raises(OSError, match="must fit on the disk"), file_size_limit(limit):
        fit_epochs(compiled(), dataset, cut, 3, quiet)
    assert names(cut.backup.parent) == before and EpochBackup(cut.backup).epoch == 2
    assert_goes_on_as(trained[0], cut, dataset, quiet)


def test_a_disk_too_small_is_refused_before_the_first_step(
    tmp_path, digits, quiet, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    stage, model = Stage(tmp_path, "stage"), compiled()
    with pytest.raises(OSError, match=r"state\.npz.*1000 are free"):
        fit_epochs(model, load_dataset(digits), stage, 1, quiet)
    assert int(model.optimizer.iterations) == 0 and not stage.started


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_model(tmp_path):
    path, model = tmp_path / "model.keras", compiled()
    save_model(model, path)
    before = path.read_bytes()
    failure = pytest.raises(OSError, match=r"must fit.*model\.keras")
    with failure, file_size_limit(len(before) // 2):
        save_model(model, path)
    assert path.read_bytes() == before and names(tmp_path) == ["model.keras"]
