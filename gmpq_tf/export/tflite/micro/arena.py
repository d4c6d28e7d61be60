"""The size of the arena for a file, measured by TFLite Micro itself."""

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
# It imports nothing of this package, because the environment with TFLite Micro need not
# have it. The runtime prints from C++, so file descriptors are redirected, not
# sys.stdout.
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
    """Bytes that TFLite Micro uses of its arena.

    Args:
        total: all bytes, the smallest arena with which it starts.
        activations: bytes among them for tensors that operators compute.
        measured_with: version of the package, which has the reference kernels.
    """

    total: int
    activations: int
    measured_with: str


def micro_python() -> str | None:
    """Path of a Python with TFLite Micro: that of `GMPQ_CLIENTS`, or this one.

    None: neither has it.

    Raises:
        ExportError: the variable names a folder without a Python.
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
    """Starts TFLite Micro on a file with a fixed batch, and reads how much it used.

    Args:
        content: the bytes of the `.tflite` file.

    Returns:
        Bytes on this machine. Its pointers are twice as wide as those of a
        microcontroller, which so needs no more with the same kernels. None: the package
        is not installed.

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
    """Reads the figures in TFLite Micro's report of its allocations.

    Args:
        text: a line with its version, then what it printed.

    Raises:
        ExportError: the figures are missing.
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
