"""Writes files for TFLite's `benchmark_model` on a phone, and reads its output."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmpq_tf.files import parse_json, read_text, write_atomic
from gmpq_tf.latency import LatencyError

INDEX, SCRIPT, WHOLE = "index.json", "run.sh", "whole"
# "Inference timings in us: Init: 5685, First inference: 235, Warmup (avg): 180.6,
# Inference (avg): 179.3"; numbers of a million and more are written as 1.79e+06.
TIMING = re.compile(r"Inference timings in us:.*?\bInference \(avg\):\s*(\S+)")
SCRIPT_TEXT = """#!/bin/sh
# Times every file of this folder on the phone that adb reaches. Before:
#   adb push benchmark_model /data/local/tmp/ && \
adb shell chmod +x /data/local/tmp/benchmark_model
set -e
cd "$(dirname "$0")"
program=${{BENCHMARK_MODEL:-/data/local/tmp/benchmark_model}}
there=/data/local/tmp/gmpq_latency
adb shell mkdir -p $there
for file in *.tflite; do
  adb push "$file" $there/ > /dev/null
  adb shell $program --graph=$there/$file --num_threads={threads} --use_xnnpack=true \
--warmup_runs=10 --num_runs={runs} < /dev/null > "${{file%.tflite}}.txt" 2>&1
  adb shell rm $there/$file < /dev/null
  echo "$file"
done
"""


@dataclass(frozen=True)
class Folder:
    """The contents of a folder for a phone.

    Args:
        names: name of a file without suffix -> key of its piece.
        copies: number of copies of the piece in each file.
        threads: number of threads of the runtime.
        models: the measured models, as JSON.
        whole: keys of the pieces of the whole file; (): there is no whole file.
    """

    names: Mapping[str, str]
    copies: int
    threads: int
    models: list[Any]
    whole: tuple[str, ...] = ()


def write_folder(
    path: Path, files: Mapping[str, bytes], folder: Folder, whole: bytes | None = None
) -> None:
    """Writes files, a script that times them, and an index.

    Args:
        path: the folder.
        files: name without suffix -> bytes.
        folder: description of the files.
        whole: the whole file of a policy, if any.
    """
    for name, content in files.items():
        write_atomic(path / f"{name}.tflite", content)
    if whole is not None:
        write_atomic(path / f"{WHOLE}.tflite", whole)
    text = SCRIPT_TEXT.format(threads=folder.threads, runs=200)
    write_atomic(path / SCRIPT, text)
    write_atomic(path / INDEX, json.dumps({"format": 1, **vars(folder)}, indent=1))


def read_folder(path: Path) -> tuple[Folder, dict[str, float], float | None]:
    """Reads the outputs of `benchmark_model`.

    Args:
        path: a folder from `write_folder` in which `run.sh` was run.

    Returns:
        The folder, milliseconds of each piece, and of the whole file if there is one.

    Raises:
        LatencyError: an output is missing or contains no time; the file is named.
    """
    folder = _read_index(path / INDEX)
    rows = {
        key: parse_output(path / f"{name}.txt") / folder.copies
        for name, key in folder.names.items()
    }
    return folder, rows, parse_output(path / f"{WHOLE}.txt") if folder.whole else None


def parse_output(path: Path) -> float:
    """Mean milliseconds of a run, as `benchmark_model` printed it.

    Args:
        path: file with its output.

    Raises:
        LatencyError: the output is missing, or has no such time or more than one.
    """
    try:
        found = TIMING.findall(read_text(path))
    except (OSError, ValueError) as error:
        raise LatencyError(
            f"Every file must have been timed. Received: {path} ({error}). Run "
            f"{SCRIPT} in that folder to its end."
        ) from error
    values = [_positive(text) for text in found]
    if len(values) != 1 or values[0] is None:
        raise LatencyError(
            "The output of benchmark_model must hold one line 'Inference timings in "
            f"us: ... Inference (avg): TIME'. Received: {path} with {found or 'none'}. "
            "See there what went wrong on the phone, and run it again."
        )
    return values[0] / 1000


def _positive(text: str) -> float | None:
    try:
        value = float(text.rstrip(","))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _read_index(path: Path) -> Folder:
    try:
        index = parse_json(read_text(path))
        if index.pop("format") != 1:
            raise ValueError("it is of another format")
        folder = Folder(**{**index, "whole": tuple(index["whole"])})
        if not folder.names or folder.copies < 1 or folder.threads < 1:
            raise ValueError("it names no files")
        return folder
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LatencyError(
            "The folder must be one that --write_only made. "
            f"Received: {path} ({error}). Write it again."
        ) from error
