"""Commands that are killed or asked to stop lose nothing: real processes."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import flags

from gmpq_tf.files import replacing
from gmpq_tf.run.app import guarded
from gmpq_tf.run.loop import EpochBackup
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.search import RiskConfig, StopOnDivergence
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.search import SearchConfig, search

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ["--dataset=digits", "--augment=shift", "--batch_size=8", "--threads=1"]
TRAINING += ["--epochs=5", "--schedule=step", "--decay_epochs=2,4", "--progress=none"]
COMMANDS = {
    "pretrain": ["train.pretrain", *TRAINING],
    "search": [
        "train.search",
        *TRAINING,
        "--learning_rate=0.01",
        "--importance_optimizer=adam",
        "--bit_ops_budget=120000",
        "--final_temperature=0.5",
        "--calibration_images=32",
    ],
    "finetune": [
        "train.finetune",
        *TRAINING,
        "--policy=uniform:3,4",
        "--distillation=0.5",
        "--calibration_images=32",
        "--statistics_images=64",
    ],
    "export": [
        "export.tflite",
        "--threads=1",
        "--latency_runs=0",
        "--verify_images=64",
        "--least_agreement=0",
    ],
    "compress": [
        "train.compress",
        *("--dataset=digits", "--scaling=0..1", "--threads=1", "--progress=none"),
        *("--budget=W4A4,20kB", "--calibration_images=64", "--table_images=64"),
        *("--verify_images=64", "--latency_runs=0", "--least_agreement=0"),
    ],
}
# When a signal is sent: once a file of the workdir has been written, and a time drawn
# between 0 and so many seconds has passed; no file: since the start.
MOMENTS = {
    "pretrain": [
        (signal.SIGKILL, None, 5),
        (signal.SIGKILL, "config/pretrain.json", 3),
        (signal.SIGKILL, "pretrain/backup/.next.*", 0),
        (signal.SIGKILL, "pretrain/backup/state.npz", 1),
        (signal.SIGKILL, "pretrain/.model.*", 0),
    ],
    "search": [
        (signal.SIGKILL, "config/search.json", 1),
        (signal.SIGKILL, "search/metrics.jsonl", 0),
        (signal.SIGTERM, "search/backup/state.npz", 1),
        (signal.SIGKILL, "search/backup/.next.*", 0),
        (signal.SIGKILL, "search/backup/state.npz", 1),
        (signal.SIGKILL, None, 8),
        (signal.SIGKILL, "search/importances.json", 0),
        (signal.SIGKILL, "search/done.json", 0),
    ],
    "finetune": [
        (signal.SIGKILL, "finetune/policy.json", 3),
        (signal.SIGKILL, "finetune/metrics.jsonl", 1),
        (signal.SIGINT, "finetune/backup/state.npz", 1),
        (signal.SIGKILL, "finetune/backup/.next.*", 0),
        (signal.SIGKILL, "finetune/model.keras", 0),
        (signal.SIGKILL, "finetune/done.json", 0),
    ],
    "export": [
        (signal.SIGKILL, None, 3),  # on a quiet machine an export takes 5 s
        # Seen or not, the temporary file is followed by the file.
        (signal.SIGKILL, "finetune/*model*.tflite", 0),
        (signal.SIGKILL, "finetune/model.tflite", 0),
        (signal.SIGKILL, "finetune/export_report.json", 0),
    ],
    "compress": [
        (signal.SIGKILL, None, 5),
        (signal.SIGKILL, "pretrain/done.json", 0),
        (signal.SIGKILL, "search/journal.jsonl", 0),
        (signal.SIGKILL, "search/policy.json", 0),
        (signal.SIGKILL, "compress/policy.json", 0.5),
        (signal.SIGKILL, "compress/model.keras", 0),
        (signal.SIGKILL, "compress/*model*.tflite", 0),
        (signal.SIGKILL, "compress/export_report.json", 0),
        (signal.SIGKILL, "compress/evaluation.json", 0),
    ],
}


class Started:
    """A command in a process group of its own, so that children can be killed too.

    No file may grow beyond so many blocks of 1024 bytes, as on a full disk.
    """

    def __init__(self, words, workdir, blocks="unlimited"):
        self.workdir, self.since = workdir, time.time_ns()
        self.errors = workdir.with_suffix(".stderr")
        workdir.parent.mkdir(parents=True, exist_ok=True)
        # A signal that the test's own shell ignores would stay ignored.
        kept = signal.signal(signal.SIGINT, signal.default_int_handler)
        limited = ["bash", "-c", f'ulimit -f {blocks}; exec "$@"', "limited"]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*limited, sys.executable, "-m", *words, f"--workdir={workdir}"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        signal.signal(signal.SIGINT, kept)

    def wrote(self, pattern):
        for path in self.workdir.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns >= self.since:
                    return True
        return False

    def wait_for(self, pattern, seconds):
        while pattern and self.process.poll() is None and not self.wrote(pattern):
            time.sleep(0.001)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def end(self, number=None, group=True):
        """Sends a signal, waits; returns the exit code and what went to stderr."""
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.process.pid, number)
        code = self.process.wait(120)
        lines = self.errors.read_text().splitlines()
        return code, [line for line in lines if line.startswith("Stop")], lines


@pytest.fixture
def start():
    """Starts commands, none of which outlives the test."""
    started = []

    def start_one(words, workdir, **options):
        started.append(Started(words, workdir, **options))
        return started[-1]

    yield start_one
    for command in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait()


def cut_at_all_moments(start, stage, words, workdir):
    """Returns how often the command was killed before it had ended."""
    drawn, kills = random.Random(f"gmpq {stage}"), 0
    for number, pattern, latest in MOMENTS[stage]:
        command = start(words, workdir)
        command.wait_for(pattern, drawn.uniform(0, latest))
        code, said, lines = command.end(number)
        kills += code == -signal.SIGKILL
        if number != signal.SIGKILL:
            assert code == 128 + number, lines
            name = signal.Signals(number).name
            assert len(said) == 1 and f"Stopped by {name}" in said[0]
            assert "goes on with epoch" in said[0] and "Traceback" not in lines
    return kills


def planned(stage):
    return sum(number == signal.SIGKILL for number, _, _ in MOMENTS[stage])


def finished(command):
    code, _, lines = command.end()
    assert code == 0, lines
    return command.workdir


def assert_same_results(stage, whole, cut):
    for name in ("policy.json", "importances.json"):
        paths = [run / stage / name for run in (whole, cut)]
        if paths[0].exists():
            assert paths[1].read_text() == paths[0].read_text()
    if (whole / stage / "model.keras").exists():
        weights = [
            keras.models.load_model(run / stage / "model.keras").get_weights()
            for run in (whole, cut)
        ]
        for a, b in zip(*weights, strict=True):
            np.testing.assert_array_equal(a, b)
    logs = [
        [json.loads(line) for line in (run / stage / "metrics.jsonl").open()]
        for run in (whole, cut)
    ]
    for line in logs[0] + logs[1]:
        line.pop("seconds")
    assert logs[0] == logs[1] and [line["epoch"] for line in logs[0]] == [*range(5)]
    assert temporaries(cut) == []
    assert not (cut / stage / "backup").exists()


def temporaries(folder):
    return [str(path) for path in folder.rglob("*.tmp*")]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "search", "finetune"])
def test_a_killed_stage_ends_as_one_that_was_not(stage, start, float_file, tmp_path):
    words = [*COMMANDS[stage], f"--model={float_file}"]
    whole = start(words, tmp_path / "whole")
    kills = cut_at_all_moments(start, stage, words, tmp_path / "cut")
    assert kills >= planned(stage) - 1  # one may come after the end
    cut = start(words, tmp_path / "cut")
    assert_same_results(stage, finished(whole), finished(cut))


@pytest.mark.slow
def test_a_killed_export_writes_the_same_bytes(start, float_file, digits, tmp_path):
    config = FinetuneConfig(epochs=0, model=str(float_file), policy="uniform:3,4")
    finetune(config, digits, RunConfig(workdir=str(tmp_path / "whole")))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    words = COMMANDS["export"]
    kills = cut_at_all_moments(start, "export", words, tmp_path / "cut")
    assert kills >= planned("export") - 1
    files = [
        (finished(command) / "finetune" / "model.tflite").read_bytes()
        for command in [start(words, tmp_path / name) for name in ("whole", "cut")]
    ]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_killed_compression_writes_the_same_files(start, float_file, tmp_path):
    words = [*COMMANDS["compress"], f"--model={float_file}"]
    kills = cut_at_all_moments(start, "compress", words, tmp_path / "cut")
    assert kills >= planned("compress") - 2  # two may come after the end
    whole, cut = (finished(start(words, tmp_path / name)) for name in ("whole", "cut"))
    for name in ("search/values.json", "compress/model.tflite"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    policies = [
        json.loads((run / "search/policy.json").read_text()) for run in (whole, cut)
    ]
    assert policies[0]["layers"] == policies[1]["layers"]
    assert temporaries(cut) == []
    assert (cut / "report/report.html").exists()


@pytest.mark.slow
def test_a_command_without_room_says_so_and_goes_on_with_it(
    start, float_file, tmp_path
):
    words = [*COMMANDS["pretrain"], f"--model={float_file}"]
    command = start(words, tmp_path / "run", blocks=8)
    code, _, lines = command.end()
    (said,) = [line for line in lines if line.startswith("Error")]
    assert code == 1 and "must fit on the disk" in said and "Received" in said
    assert temporaries(tmp_path) == []
    assert (finished(start(words, tmp_path / "run")) / "pretrain/done.json").exists()


@pytest.mark.slow
def test_a_killed_sweep_ends_as_one_that_was_not(start, float_file, tmp_path):
    """Killed with its children, asked to stop, and killed alone."""
    common = {"epochs": 1, "dataset": "digits", "batch_size": 64}
    content = {
        "search": common,
        "finetune": common,
        "evaluate": {"dataset": "digits", "split": "test"},
        "grid": {"seed": [3]},
    }
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(content))
    words = ["train.sweep", f"--spec={spec}", f"--model={float_file}", "--threads=1"]
    cut, point = tmp_path / "cut", "points/0_seed=3"
    uncut = start(words, tmp_path / "whole")
    for number, pattern, group in (
        (signal.SIGKILL, f"{point}/search/metrics.jsonl", True),
        (signal.SIGTERM, f"{point}/config/finetune.json", False),
        (signal.SIGKILL, f"{point}/finetune/metrics.jsonl", True),
        (signal.SIGKILL, f"{point}/finetune/evaluation.json", False),
    ):
        command = start(words, cut)
        command.wait_for(pattern, 0)
        code, said, lines = command.end(number, group)
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        if number == signal.SIGTERM:
            assert len(said) == 1 and "Traceback" not in "".join(lines)
            log = (cut / point / "finetune.log").read_text()
            assert "goes on with epoch 1" in log and "Traceback" not in log
    whole, cut = finished(uncut), finished(start(words, cut))
    assert (cut / "sweep.csv").read_text() == (whole / "sweep.csv").read_text()
    assert len((cut / "sweep.csv").read_text().splitlines()) == 2
    weights = [
        keras.models.load_model(run / point / "finetune" / "model.keras").get_weights()
        for run in (whole, cut)
    ]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


class Killed(BaseException):
    """What a process does after kill -9: nothing, so no cleaning up either."""


def killed_while_writing(patch, name):
    """Makes the process end once it has written a file, before the file counts."""
    flush = replacing._flush_to_disk

    def kill(path):
        if path.name.startswith(f".{name}."):
            patch.setattr(Path, "unlink", lambda *args, **kwargs: None)
            raise Killed
        flush(path)

    patch.setattr(replacing, "_flush_to_disk", kill)


def terminated_at(patch, epoch, step):
    """Sends SIGTERM in the middle of an epoch."""
    look = StopOnDivergence.on_train_batch_end

    def terminate(self, batch, logs=None):
        if (self.epoch, batch) == (epoch, step):
            os.kill(os.getpid(), signal.SIGTERM)
        look(self, batch, logs)

    patch.setattr(StopOnDivergence, "on_train_batch_end", terminate)


def test_a_search_stopped_in_an_epoch_and_killed_while_saving(
    float_file, digits, tmp_path, monkeypatch, capsys
):
    config = SearchConfig(
        epochs=2,
        learning_rate=0.01,
        calibration_images=32,
        importance_optimizer="adam",
        risk=RiskConfig(bit_ops_budget=120_000, eta=0.0),
        model=str(float_file),
    )

    def run(name):
        workdir = str(tmp_path / name)
        return search(config, digits, RunConfig(workdir=workdir, progress="none"))

    monkeypatch.setattr("absl.flags.FLAGS", flags.FlagValues())
    flags.DEFINE_boolean("debug", False, "", flag_values=flags.FLAGS)
    flags.FLAGS(["program"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_:
        terminated_at(patch, 1, 2)
        guarded(lambda argv: run("cut"))(["program"])
    assert exit_.value.code == 143
    assert "goes on with epoch 2." in capsys.readouterr().err
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_while_writing(patch, "policy")
        run("cut")
    cut = tmp_path / "cut" / "search"
    assert len(temporaries(cut)) == 1 and not (cut / "done.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(EpochBackup, "on_epoch_end", None)  # no epoch is left to train
        run("cut")
    assert temporaries(cut) == []
    whole = run("whole").folder
    for name in ("policy.json", "importances.json"):
        assert (cut / name).read_text() == (whole / name).read_text()
