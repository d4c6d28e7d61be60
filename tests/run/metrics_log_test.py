import csv
import importlib.util
from types import SimpleNamespace

import pytest

from gmpq_tf.files import append_jsonl, read_jsonl
from gmpq_tf.run.metrics_log import metrics_logs
from gmpq_tf.run.run_config import RunConfig

FIRST = {"loss": 0.1 + 0.2, "accuracy": 1 / 3}  # numbers that need every digit


def run(folder, epochs, start=0, tensorboard=False, ends=True):
    """What `fit` calls, with the logs of the given epochs."""
    logs = metrics_logs(folder, start, tensorboard)
    for log in logs:
        optimizer = SimpleNamespace(learning_rate=0.1)
        log.set_model(SimpleNamespace(optimizer=optimizer))
        log.on_train_begin()
    for epoch, values in enumerate(epochs, start):
        for log in logs:
            log.on_epoch_begin(epoch)
        for log in logs:
            log.on_epoch_end(epoch, values)
    for log in logs if ends else ():
        log.on_train_end()


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def as_numbers(row):
    """A row as the record of metrics.jsonl it came from; empty cells are absent."""
    return {key: float(text) for key, text in row.items() if text}


def test_the_table_holds_what_the_lines_hold(tmp_path):
    run(tmp_path, [FIRST, {"loss": 1e-9, "accuracy": 1.0}])
    records = read_jsonl(tmp_path / "metrics.jsonl")
    header, rows = table(tmp_path)
    assert header == ["epoch", "loss", "accuracy", "learning_rate", "seconds"]
    assert [as_numbers(row) for row in rows] == records
    assert records[0]["loss"] == FIRST["loss"]
    assert rows[1]["epoch"] == "1"


def test_columns_that_come_later_are_added_at_the_end(tmp_path):
    run(tmp_path, [FIRST])
    before, _ = table(tmp_path)
    run(tmp_path, [{**FIRST, "val_loss": 0.5, "loss": float("nan")}], start=1)
    header, rows = table(tmp_path)
    assert header == [*before, "val_loss"]
    assert [row["val_loss"] for row in rows] == ["", "0.5"]
    assert rows[1]["loss"] == ""  # JSON has no NaN


def test_epochs_to_come_are_removed(tmp_path):
    for epoch in range(4):
        append_jsonl(tmp_path / "metrics.jsonl", {"epoch": epoch, "loss": None})
    metrics_logs(tmp_path, 2)
    kept = [{"epoch": 0, "loss": None}, {"epoch": 1, "loss": None}]
    assert read_jsonl(tmp_path / "metrics.jsonl") == kept
    assert table(tmp_path)[1] == [{"epoch": str(n), "loss": ""} for n in range(2)]
    metrics_logs(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def events(folder):
    """(run, tag, step) -> value, as TensorBoard reads it, and how many there are."""
    pytest.importorskip("tensorboard", reason="reads event files")
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    value = tensor_util.make_ndarray
    found = [
        ((part.name, tag, event.step), float(value(event.tensor_proto)))
        for part in (folder / "tensorboard").iterdir()
        for accumulator in [event_accumulator.EventAccumulator(str(part)).Reload()]
        for tag in accumulator.Tags()["tensors"]
        for event in accumulator.Tensors(tag)
    ]
    assert len(dict(found)) == len(found)  # no step twice
    return dict(found)


def expected_events(folder):
    values = {}
    for record in read_jsonl(folder / "metrics.jsonl"):
        for key in record.keys() - {"epoch"}:
            part = "validation" if key.startswith("val_") else "train"
            tag = f"epoch_{key.removeprefix('val_')}"
            values[part, tag, record["epoch"]] = pytest.approx(record[key], rel=1e-6)
    return values


def test_tensorboard_holds_what_the_lines_hold(tmp_path):
    pytest.importorskip("tensorboard", reason="writes event files")
    run(tmp_path, [FIRST, {**FIRST, "val_loss": 0.5}], tensorboard=True)
    found = events(tmp_path)
    assert found == expected_events(tmp_path)
    assert found["validation", "epoch_loss", 1] == 0.5
    assert len(found) == 4 + 5


def test_a_resumed_run_has_no_tensorboard_step_twice(tmp_path):
    pytest.importorskip("tensorboard", reason="writes event files")
    interrupted = [{"loss": float(n)} for n in range(3)]
    run(tmp_path, interrupted, tensorboard=True, ends=False)
    run(tmp_path, [{"loss": 7.0}], start=2, tensorboard=True)
    found = events(tmp_path)
    assert found == expected_events(tmp_path)
    losses = [found["train", "epoch_loss", step] for step in range(3)]
    assert losses == [0.0, 1.0, 7.0]


def test_tensorboard_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        RunConfig(tensorboard=True)
    assert not RunConfig().tensorboard
