"""Runs searches that are killed in the middle, and what goes on with them.

    python -m tests.train.killed_searches FLOAT_FILE FOLDER

Of each strategy one process searches without a stop, into FOLDER/whole; one is killed
by SIGKILL, in the middle of its training or of a line of its journal, and another goes
on in the same FOLDER/cut. All of them are forked from one that has imported TensorFlow
and not used it, as importing takes longest. Prints the name and three exit codes.
"""

import os
import signal
import sys
from pathlib import Path

import keras

from gmpq_tf.data import DataConfig
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.search import STRATEGIES, journal
from gmpq_tf.search.finalists import FinalistsConfig
from gmpq_tf.search.strategies import training
from gmpq_tf.train.strategies import ChoicesConfig, search_by
from tests.search.strategies_test import CASES

TRAINED = {"epochs": 3, "learning_rate": 1e-3}
MEASURED = {"images": 64}  # where a strategy has this option
KILLED = (1, 2)  # epoch and batch, from 0


class Kill(keras.callbacks.Callback):
    """Kills its process in the middle of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)


def options_of(name):
    """Options with which a strategy is quick on the digits."""
    row = STRATEGIES[name]
    if row.gradient:
        return row.config(**TRAINED)
    known = row.config.__dataclass_fields__
    usual = {k: v for k, v in MEASURED.items() if k in known}
    return row.config(**(usual | CASES[name]))


def search(name, float_file, folder):
    """Searches by the command's own way, in a workdir of the strategy's."""
    search_by(
        name,
        ChoicesConfig(model=float_file, budget="W3A3", calibration_images=32),
        options_of(name),
        FinalistsConfig(),
        DataConfig("digits", batch_size=256),
        RunConfig(workdir=str(folder / name), progress="none"),
    )


def armed(name, float_file, folder, lines):
    """As `search`, killed in the middle of its training or before half of the lines."""
    append, decays, written = journal._append, training._decays, []

    def half(path, line):
        written.append(line)
        if len(written) > max(lines // 2, 1) and not STRATEGIES[name].gradient:
            with path.open("ab") as file:
                file.write(line[: len(line) // 2].encode())
                file.flush()
                os.fsync(file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, line)

    journal._append = half
    training._decays = lambda *args: [*decays(*args), Kill()]
    search(name, float_file, folder)


def forked(function, *args):
    """Runs a function in a process of its own; returns its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*args)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(float_file, folder, *names):
    """Runs the three of each strategy."""
    folder = Path(folder)
    for name in names or STRATEGIES:
        codes = [forked(search, name, float_file, folder / "whole")]
        path = folder / "whole" / name / "search" / "journal.jsonl"
        lines = len(path.read_bytes().splitlines()) if path.exists() else 0
        codes.append(forked(armed, name, float_file, folder / "cut", lines))
        codes.append(forked(search, name, float_file, folder / "cut"))
        print(name, *codes, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
