"""Works on Windows and macOS, as far as the code can tell."""

import ast

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
            owner = getattr(getattr(node, "value", None), "id", "")
            if getattr(node, "attr", "") in MISSING.get(owner, ()):
                found.append(f"{path}:{node.lineno}")
    assert not found


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
