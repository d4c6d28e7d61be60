"""Runs a command: flags in, one clear message and an exit code out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from absl import app, flags, logging
from gmpq_tf.export.flags import define_flags

Main = Callable[[list[str]], None]


def run_main(
    main: Main,
    doc: str | None,
    *configs: type,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Defines the flags of a command, parses them and runs it; never returns.

    Args:
        main: the command; takes the arguments that are not flags, program name first.
        doc: what `--help` prints first.
        *configs: dataclasses whose fields become flags.
        defaults: field name -> default of this command, where it is not the field's.
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
    app.run(guarded(main))


def guarded(main: Main) -> Main:
    """Wraps a command so that a user's mistake is one message, not a traceback.

    Args:
        main: the command.

    Returns:
        A function that exits with 1 after ValueError or OSError, whose message it
        prints to stderr, and with 130 after Ctrl-C; `--debug` lets them through.
    """

    def guarded_main(argv: list[str]) -> None:
        if not flags.FLAGS.debug:
            _silence_libraries()
        try:
            _refuse_words(argv)
            main(argv)
        except (ValueError, OSError) as error:
            if flags.FLAGS.debug:
                raise
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
            sys.exit(130)

    return guarded_main


def _silence_libraries() -> None:
    # TensorFlow warns of each model that is compiled, TFDS tells each file it reads.
    logging.set_verbosity(logging.ERROR)
    tf.get_logger().setLevel("ERROR")


def _refuse_words(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(
            "Everything after the command must be a flag. "
            f"Received: {' '.join(argv[1:])!r}. Write --name=value; see --help."
        )
