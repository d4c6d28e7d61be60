"""Runs a command: flags in, one clear message and an exit code out."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from absl import app, flags, logging

from gmpq_tf.run.flags import define_flags
from gmpq_tf.run.stage import interrupted_at
from gmpq_tf.run.workdir import check_writable

Main = Callable[[list[str]], None]
STOPPING = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C and cluster managers signal a command and its children, and the command also
# passes the signal on to them. Signals within this many seconds of each other
# therefore count as one request to stop.
ONE_REQUEST_S = 1.0


class StopRequested(KeyboardInterrupt):
    """A signal asked the command to stop.

    Args:
        number: signal number, such as `signal.SIGINT`.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_main(
    main: Main,
    doc: str | None,
    *configs: type,
    defaults: Mapping[str, Any] | None = None,
    check: Callable[[], None] | None = None,
) -> None:
    """Defines the flags of a command, parses them and runs it; never returns.

    Args:
        main: the command; takes the arguments that are not flags, program name first.
        doc: what `--help` prints first.
        *configs: dataclasses whose fields become flags.
        defaults: field name -> default in this command, where it differs from the
            field's own.
        check: called when all flags are defined but not yet parsed. It may raise
            ValueError for a command line about which it can say more than "unknown
            flag".
    """
    sys.modules["__main__"].__doc__ = doc
    for config in configs:
        define_flags(config, defaults)
    flags.DEFINE_boolean(
        "debug",
        False,
        "Show where in the code an error arose.",
        module_name=sys.argv[0],
    )
    try:
        if check is not None:
            check()
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    app.run(guarded(main))


def guarded(main: Main) -> Main:
    """Wraps a command so that a user's mistake is one message, not a traceback.

    Args:
        main: the command.

    Returns:
        A function that exits with 1 after ValueError or OSError and prints its message
        to stderr (with `--debug` it lets the error through). After SIGINT (Ctrl-C) or
        SIGTERM it exits with 128 + signal number: the running step is completed, and a
        file that was being written keeps its earlier content.
    """

    def guarded_main(argv: list[str]) -> None:
        if not flags.FLAGS.debug:
            _silence_libraries()
        try:
            with stopped_by_signals():
                _refuse_words(argv)
                _check_workdir()
                main(argv)
        except (ValueError, OSError) as error:
            if flags.FLAGS.debug:
                raise
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt as error:
            number = getattr(error, "number", signal.SIGINT)
            name = signal.Signals(number).name
            # A terminal has echoed ^C, or shows a progress bar, on this line.
            start = "\n" if sys.stderr.isatty() else ""
            print(f"{start}Stopped by {name}. {interrupted_at()}", file=sys.stderr)
            sys.exit(128 + number)

    return guarded_main


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises StopRequested in the block when SIGINT or SIGTERM arrives.

    Python runs the handler between two of its instructions, so the running TensorFlow
    step is completed first. A signal that was ignored before (`nohup`, a background
    job) is still ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -ONE_REQUEST_S

    def stop(number: int, frame: Any) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= ONE_REQUEST_S:
            raise StopRequested(number)

    kept = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in kept.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _check_workdir() -> None:
    """Refuses an unwritable workdir early, before data and model are read."""
    if "workdir" in flags.FLAGS:
        check_writable(Path(flags.FLAGS.workdir))


def _silence_libraries() -> None:
    # TensorFlow warns about every compiled model, TFDS names every file it reads.
    logging.set_verbosity(logging.ERROR)
    tf.get_logger().setLevel("ERROR")


def _refuse_words(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(
            "Everything after the command must be a flag. "
            f"Received: {' '.join(argv[1:])!r}. Write --name=value; see --help."
        )
