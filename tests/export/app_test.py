import subprocess
import sys

import pytest
from absl import flags
from gmpq_tf.export.app import guarded


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
