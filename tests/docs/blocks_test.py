"""Every block of the pages: parsed, names and flags known; run where marked slow."""

import ast
import dataclasses
import importlib
import os
import subprocess
import sys
import typing

import pytest

from tests.docs.blocks import PAGES, ROOT, blocks, commands, inline_commands, script

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    *(
        (b.place, c)
        for b in BLOCKS
        if b.language in ("sh", "bash")
        for c in commands(b)
    ),
    *((page, command) for page in PAGES for command in inline_commands(page)),
]
RUN = [page for page in PAGES if any(block.runs for block in blocks(page))]
MODULES = {"export": "export.command", "tflite": "export.command"}
LANGUAGES = {"python", "sh", "text", "json", "yaml", "kotlin", "swift", "cpp", "bash"}


def names_of(config):
    """The flags that a dataclass makes."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        inner = hints[field.name]
        yield from names_of(inner) if dataclasses.is_dataclass(inner) else [field.name]


def flags_of(module, monkeypatch):
    """The flags of a command, read where it hands its dataclasses over."""
    given = {"debug", "help", "helpfull"}

    def run_main(main, doc, *configs, **options):
        given.update(name for config in configs for name in names_of(config))

    monkeypatch.setattr(module, "run_main", run_main)
    strategies = (
        getattr(module, "STRATEGIES", None) if "search" in module.__name__ else 0
    )
    for strategy in strategies or [None]:
        words = [f"--strategy={strategy}"] if strategy else []
        monkeypatch.setattr(sys, "argv", ["command", *words])
        module.run()
    return given


def module_of(words):
    """The module of a command of ours; None for other programs."""
    if words[0].startswith("gmpq-"):
        name = words[0].removeprefix("gmpq-")
        return f"gmpq_tf.{MODULES.get(name, f'train.{name}')}"
    if words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("train", "export"):
        name = words[2].split(".")[1]
        return f"gmpq_tf.{MODULES.get(name, f'train.{name}')}"
    return None


def test_languages_are_said():
    for block in BLOCKS:
        assert block.language in LANGUAGES, block.place


@pytest.mark.parametrize("page", PAGES)
def test_code_is_fenced(page):
    """Indented code would be shown, and not run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    inside, before = False, ""
    for line in text.splitlines():
        inside ^= line.lstrip().startswith("```")
        assert inside or before or not line.startswith("    "), line
        before = line


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language == "python"],
    ids=lambda block: block.place,
)
def test_python_is_right(block):
    """It parses, and what it imports of this package is there."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "gmpq_tf"
        ):
            module = importlib.import_module(node.module)
            for alias in node.names:
                known = hasattr(module, alias.name)
                assert known or importlib.import_module(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "gmpq":
            assert hasattr(importlib.import_module("gmpq_tf"), node.attr), node.attr


def test_commands_and_flags_are_known(monkeypatch):
    known, count = {}, 0
    for place, command in COMMANDS:
        words = command.removeprefix("exec ").split()
        name = module_of(words) if words else None
        if name is None:
            continue
        if name not in known:
            known[name] = flags_of(importlib.import_module(name), monkeypatch)
        given = (word for word in words if word.startswith("--"))
        for flag in (word[2:].partition("=")[0] for word in given):
            found = flag in known[name] or flag.removeprefix("no") in known[name]
            assert found, (place, command, flag)
            count += 1
    assert count > 50


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with the commands, as an installation would have them."""
    folder = tmp_path_factory.mktemp("bin")
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    (table,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(setup).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMANDS"
    ]
    for name, module in table.items():
        path = folder / name
        code = f"import sys; sys.argv[0] = '{name}'; from gmpq_tf.{module} import run"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}; run()" "$@"\n')
        path.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_as_written(page, programs, tmp_path):
    path = tmp_path / "page.py"
    path.write_text(script(page), encoding="utf-8")
    search = os.pathsep.join([str(programs), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PATH": search, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
