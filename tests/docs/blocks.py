"""The code of the pages: blocks of Python and of commands, in their order."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
SETUP = "docs/tutorial.md"  # its first block of Python makes model.keras and photos/
NOT_RUN = "Not run by the tests"
_BLOCK = re.compile(
    r"^( *)```(\w*)(?: title=\"([^\"]*)\")?[^\n]*\n(.*?)^ *```$", re.M | re.S
)
_INLINE = re.compile(r"`((?:gmpq-|python -m (?:train|export)\.)[^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        page: path of the page, relative to the root.
        line: where its code starts.
        language: "python", "sh", ...
        title: what stands above it.
        text: the code.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def runs(self):
        return self.language in ("python", "sh") and not self.title.startswith(NOT_RUN)

    @property
    def place(self):
        return f"{self.page}:{self.line}"


def blocks(page):
    """Every fenced block of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start(4)) + 1
        indent = len(found[1])
        code = "".join(row[indent:] or "\n" for row in found[4].splitlines(True))
        yield Block(page, line, found[2], found[3] or "", code)


def commands(block):
    """The commands of a block of `sh`, continued lines joined."""
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        line = line.partition("  #")[0].strip()
        if line and not line.startswith("#"):
            yield " ".join(line.split())


def inline_commands(page):
    """Commands between backquotes in the text of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in _INLINE.finditer(re.sub(r"```.*?```", "", text, flags=re.S)):
        yield " ".join(found[1].split())


def script(page):
    """One Python program that does what a page says, its commands in bash."""
    found = [block for block in blocks(page) if block.runs]
    if page != SETUP and found:
        found.insert(0, next(b for b in blocks(SETUP) if b.title == "setup.py"))
    parts = ["import subprocess as _subprocess"]
    for block in found:
        parts.append(f"print({'## ' + block.place!r}, flush=True)")
        code = block.text
        if block.language == "sh":
            run = f"['bash', '-euo', 'pipefail', '-c', {code!r}]"
            code = f"_subprocess.run({run}, check=True, stdin=_subprocess.DEVNULL)"
        parts.append(code)
    return "\n".join(parts)
