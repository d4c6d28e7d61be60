"""The arena that TFLite Micro needs for a file: planned here, or measured by it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gmpq_tf.export.errors import ExportError

CLIENTS = "GMPQ_CLIENTS"  # environment variable: a Python environment of its own
LONGEST = 120  # seconds
NO_PACKAGE = 3
# Names no module of ours: that of an environment with TFLite Micro alone runs it. What
# the runtime prints, it prints below Python.
_PROGRAM = f"""
import os, sys
try:
    from importlib.metadata import version
    from tflite_micro import runtime
    name = version("tflite-micro")
except ImportError:
    sys.exit({NO_PACKAGE})
model, output = sys.argv[1:]
with open(output, "wb") as file:
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
os.write(1, ("version " + name + chr(10)).encode())
interpreter = runtime.Interpreter.from_file(
    model,
    arena_size=1 << 28,
    intrepreter_config=runtime.InterpreterConfig.kAllocationRecording,
)
interpreter.print_allocations()
"""


@dataclass(frozen=True)
class Arena:
    """Bytes that TFLite Micro takes of its arena.

    Args:
        total: all of them, the least with which it starts.
        activations: of these, of tensors that the operators compute.
        measured_with: version of the package, whose kernels are the reference ones.
    """

    total: int
    activations: int
    measured_with: str


def micro_python() -> str | None:
    """The Python that has TFLite Micro: of `GMPQ_CLIENTS`, or this one.

    Raises:
        ExportError: the variable names a folder that holds no Python.
    """
    folder = os.environ.get(CLIENTS)
    if folder:
        places = [Path(folder, "bin", "python"), Path(folder, "Scripts", "python.exe")]
        found = next((str(path.absolute()) for path in places if path.exists()), None)
        if found is None:
            raise ExportError(
                f"{CLIENTS} must name a Python environment with tflite-micro. "
                f"Received: {CLIENTS}={folder!r}, which holds no bin/python. Make it "
                "with `python -m venv`, or leave the variable out."
            )
        return found
    return sys.executable if find_spec("tflite_micro") and sys.executable else None


def measure_arena(content: bytes) -> Arena | None:
    """Start TFLite Micro on a file of a fixed batch, and ask what it took.

    Args:
        content: of the `.tflite` file.

    Returns:
        Bytes on this machine, whose pointers are twice as wide as those of a
        microcontroller: none of these needs more with the same kernels. None where the
        package is not installed.

    Raises:
        ExportError: TFLite Micro does not start on the file.
    """
    python = micro_python()
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder, "model.tflite"), Path(folder, "out.txt")
        model.write_bytes(content)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        try:
            done = subprocess.run(  # noqa: S603  our own program
                [python, "-c", _PROGRAM, model, output],
                env=environment,
                capture_output=True,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _not_started(f"nothing within {LONGEST} s") from error
        text = output.read_text("utf-8", "replace") if output.exists() else ""
    if done.returncode == NO_PACKAGE:
        return None
    return parsed(text)


def parsed(text: str) -> Arena:
    """The figures in what TFLite Micro prints of its allocations.

    Args:
        text: what it printed, after a line with its version.

    Raises:
        ExportError: they are not in it.
    """
    version = re.search(r"^version (\S+)", text)
    sizes = [
        re.search(rf"Arena allocation {part} (\d+) bytes", text)
        for part in ("total", "head")
    ]
    if version is None or None in sizes:
        lines = [line for line in text.splitlines()[1:] if line.strip()]
        raise _not_started("; ".join(lines[-3:]) or "it ended without a word")
    total, head = (int(size[1]) for size in sizes if size)
    return Arena(total, head, version[1])


def _not_started(why: str) -> ExportError:
    return ExportError(
        "TFLite Micro must start on the file. "
        f"Received: {why[:300]}. Nothing was written; please report the model."
    )
