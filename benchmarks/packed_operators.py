"""Time every operator of a model's file alone, in each storage.

    python benchmarks/packed_operators.py --output=results/latency/operators.json

ResNet-8 at 32 pixels, ten classes: W4A4 `fast` and `packed`, W2A2 `fast` and
`smallest`. An operator's time is a quarter of that of a file of four of it beside each
other. The whole files are timed too; what they take beyond the sum is what operators
push out of each other's caches. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from gmpq_tf.export.latency.pieces import File
from gmpq_tf.export.latency.programs import COPIES, student_of
from gmpq_tf.export.latency.timing import Timing, time_files
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import runtime_name
from gmpq_tf.models import build_model
from gmpq_tf.policy import BitwidthPolicy

CASES = ((4, "fast"), (4, "packed"), (2, "fast"), (2, "smallest"))


def main() -> None:
    """Measure, print a line an operator code and file, and write all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet8", help="a built-in one")
    parser.add_argument("--image_size", type=int, default=32, help="pixels")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each file")
    parser.add_argument("--output", required=True, help="JSON file to write")
    options = parser.parse_args()
    size = (options.image_size, options.image_size, 3)
    model = build_model(options.model, size, 10)
    files, operators = {}, {}
    for bits, storage in CASES:
        policy = BitwidthPolicy.uniform(model, bits, bits)
        lowered = lower(student_of(model, policy), storage)
        name, file = f"W{bits}A{bits} {storage}", File(lowered.content)
        files[name] = lowered.content
        operators[name] = [
            (layer, file.key(part), file.cut(part, COPIES))
            for layer, start, end in lowered.spans
            for part in parts(file, range(start, end))
        ]
    timing = Timing(rounds=options.rounds)
    whole = time_files(files, timing)
    distinct = {key: cut for rows in operators.values() for _, key, cut in rows}
    alone = {k: ms / COPIES for k, ms in time_files(distinct, timing).items()}
    record = {
        "command": " ".join(sys.argv),
        "runtime": runtime_name(),
        "files": [described(n, whole[n], operators[n], alone) for n in files],
    }
    Path(options.output).write_text(json.dumps(record, indent=1) + "\n")


def parts(file: File, numbers: range) -> list[list[int]]:
    """Each operator alone; RESHAPE with the one behind it, layers that turn as one."""
    if any(file.code(number) == "TRANSPOSE" for number in numbers):
        return [list(numbers)]
    found: list[list[int]] = []
    for number in numbers:
        if found and file.code(found[-1][-1]) == "RESHAPE":
            found[-1].append(number)
        else:
            found.append([number])
    return found


def described(
    name: str, whole: float, rows: list[tuple], alone: dict[str, float]
) -> dict[str, Any]:
    """Milliseconds of a file, of each kind of its operators, and of each of them.

    Args:
        name: of the file.
        whole: milliseconds of one run.
        rows: layer, key and file of each operator.
        alone: key -> milliseconds.
    """
    codes: dict[str, float] = defaultdict(float)
    for _, key, _ in rows:
        kind = next((t for t in (" int4[", " int2[") if t in key), "").strip(" [")
        names = [text.split(" ")[0] for text in key.split(" | ")]
        codes[f"{' '.join(names)} {kind}".strip()] += alone[key]
    codes = dict(sorted(codes.items(), key=lambda pair: -pair[1]))
    print(f"{name:16s} {whole:.4f} ms, sum {sum(codes.values()):.4f}", flush=True)
    for code, ms in codes.items():
        print(f"    {code:22s} {ms:.4f}")
    return {
        "file": name,
        "ms": whole,
        "codes": codes,
        "operators": [[layer, key, alone[key]] for layer, key, _ in rows],
    }


if __name__ == "__main__":
    main()
