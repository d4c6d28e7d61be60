"""Works on Windows and macOS, as far as the code can tell."""

import ast
import os
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT

POSIX_ONLY = set("fcntl resource pwd grp termios pty tty curses syslog posix".split())
# Attributes of `os` and `signal` that Windows lacks.
MISSING = {
    "os": set(
        "fork getuid geteuid uname killpg setsid mkfifo nice getpgid wait".split()
    ),
    "signal": set("SIGKILL SIGHUP SIGALRM SIGUSR1 SIGXCPU SIGPIPE alarm".split()),
}
TREES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for name in ("gmpq_tf", "train", "export")
    for path in (ROOT / name).rglob("*.py")
}


def at_import(tree):
    """The nodes that run when a module is imported: none of function bodies."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        inner = not isinstance(node, ast.FunctionDef | ast.Lambda)
        todo += ast.iter_child_nodes(node) if inner else []


def names_of(node):
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return (
        {(node.module or "").split(".")[0]}
        if isinstance(node, ast.ImportFrom)
        else set()
    )


def test_nothing_of_posix_at_import():
    found = []
    for path, tree in TREES.items():
        for node in at_import(tree):
            if names_of(node) & POSIX_ONLY:
                found.append(f"{path}:{node.lineno}")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                missing = MISSING.get(node.module, set())
                if missing & {alias.name for alias in node.names}:
                    found.append(f"{path}:{node.lineno}")
            owner = getattr(getattr(node, "value", None), "id", "")
            if getattr(node, "attr", "") in MISSING.get(owner, ()):
                found.append(f"{path}:{node.lineno}")
    assert not found


# What a module of ours imports is that of Windows, nearly; others see it all.
WITHOUT = """
import builtins, importlib, sys, types
posix_only, missing, modules = {posix_only!r}, {missing!r}, {modules!r}
real = builtins.__import__

class Windows(types.ModuleType):
    def __init__(self, module, hidden):
        super().__init__(module.__name__)
        shown = {{k: v for k, v in vars(module).items() if k not in hidden}}
        self.__dict__.update(shown)

def imported(name, globals=None, locals=None, fromlist=(), level=0):
    by = (globals or {{}}).get("__name__", "").partition(".")[0]
    ours = by in ("gmpq_tf", "train", "export")
    if ours and name.partition(".")[0] in posix_only:
        raise ModuleNotFoundError("No module named " + name)
    module = real(name, globals, locals, fromlist, level)
    return Windows(module, missing[name]) if ours and name in missing else module

builtins.__import__ = imported
for name in modules:
    importlib.import_module(name)
print(len(modules))
"""


@pytest.mark.slow
def test_every_module_is_imported_where_nothing_of_posix_is(tmp_path):
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in TREES
    )
    code = WITHOUT.format(posix_only=POSIX_ONLY, missing=MISSING, modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split()[-1:] == [str(len(modules))], done.stderr[-2000:]
    assert len(modules) > 300


def said(call):
    """Whether an argument by its place is the encoding: the second of write_text."""
    place = 1 if call.func.attr == "write_text" else 0
    return len(call.args) > place


def test_text_files_say_their_encoding():
    """Windows would read and write them in another one."""
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_text = node.func.attr in ("read_text", "write_text")
                given = {keyword.arg for keyword in node.keywords}
                if is_text and not given & {"encoding"} and not said(node):
                    found.append(f"{path}:{node.lineno}")
    assert not found
