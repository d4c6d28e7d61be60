"""Troubleshooting is keyed by messages that the code gives."""

import ast
import re

from tests.docs.blocks import ROOT


def texts(folder):
    """Every text of the code, with what is filled in left out."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    v.value if isinstance(v, ast.Constant) else "" for v in node.values
                ]
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_is_one_of_ours():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(messages) > 25
    known = "\n".join(texts(ROOT / "gmpq_tf"))
    assert [message for message in messages if message not in known] == []
