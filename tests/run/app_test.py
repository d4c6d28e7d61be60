import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from absl import flags

from gmpq_tf.run.app import guarded


@pytest.fixture
def debug(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    flags.DEFINE_boolean("debug", False, "", flag_values=flags.FLAGS)

    def parse(*words):
        flags.FLAGS(["program", *words])

    return parse


def fail_with(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize("error", [ValueError("do this"), OSError("disk full")])
def test_a_mistake_is_one_message_and_exit_code_1(debug, capsys, error):
    debug()
    with pytest.raises(SystemExit) as exit_:
        guarded(fail_with(error))(["program"])
    assert exit_.value.code == 1
    assert capsys.readouterr().err == f"Error: {error}\n"


def test_debug_shows_where_it_arose(debug):
    debug("--debug")
    with pytest.raises(ValueError, match="do this"):
        guarded(fail_with(ValueError("do this")))(["program"])


def test_a_bug_is_not_hidden(debug):
    debug()
    with pytest.raises(TypeError):
        guarded(fail_with(TypeError("bug")))(["program"])


def test_an_interrupt_ends_with_130(debug, capsys):
    debug()
    with pytest.raises(SystemExit) as exit_:
        guarded(fail_with(KeyboardInterrupt()))(["program"])
    assert exit_.value.code == 130
    assert "same command" in capsys.readouterr().err


def test_words_that_are_no_flags_are_refused(debug, capsys):
    debug()
    with pytest.raises(SystemExit):
        guarded(lambda argv: None)(["program", "digits"])
    assert "'digits'" in capsys.readouterr().err


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("module", ["train.search", "gmpq_tf.train.search"])
def test_help_starts_with_the_docstring_and_lists_the_flags(repo_root, module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )
    assert done.stdout.lstrip().startswith("Searches how many bits")
    for flag in (
        "--bit_ops_budget",
        "--importance_learning_rate",
        "--pinned",
        "--mean",
    ):
        assert f"\n  {flag}: " in done.stdout


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_with_one_line_and_128_more_than_its_number(debug, capsys, name):
    debug()
    number, kept = getattr(signal, name), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def main(argv):
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:  # a second one, as from a parent that passes it on, disturbs nothing
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(SystemExit) as exit_:
        guarded(main)(["program"])
    assert exit_.value.code == 128 + number
    said = capsys.readouterr().err
    assert said.startswith(f"Stopped by {name}. ") and said.count("\n") == 1
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    signal.signal(signal.SIGINT, kept)


def test_an_ignored_signal_stays_ignored(debug):
    debug()
    kept = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        guarded(lambda argv: os.kill(os.getpid(), signal.SIGINT))(["program"])
    finally:
        signal.signal(signal.SIGINT, kept)


def test_a_command_may_run_in_a_thread(debug):
    debug()
    seen = []
    thread = threading.Thread(target=guarded(seen.append), args=(["program"],))
    thread.start()
    thread.join()
    assert seen == [["program"]]


def test_an_unusable_workdir_is_refused_before_any_work(debug, capsys, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    flags.DEFINE_string("workdir", str(path), "", flag_values=flags.FLAGS)
    debug()
    with pytest.raises(SystemExit) as exit_:
        guarded(lambda argv: pytest.fail("work was done"))(["program"])
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: The workdir must be a folder that can be written to")
    assert "Received" in said and "--workdir" in said
