"""From a float model and images without labels to a file within a budget: how good?

    python benchmarks/post_training_targets.py --network=mobilenet_v2 \
        --weights=mobilenet_v2_imagenet.weights.h5 --data=tfds/nips2017_dev/1.0.0 \
        --budget=W5A5 --budget=W6A6 --used=128 --skipped=122 --tested=250 \
        --output=results/post_training/mobilenet_v2.json

For each budget: a policy by a label-free table of loss deltas, a student of nearest
rounding, and the same refined (`gmpq_tf.post_training.refine`), on the `--used` first
images. `--skipped` images after them are not looked at; accuracy is that of the
`--tested` ones after those: of the integer twin, which is what the file computes. What
is done already is not done again when the command is given a second time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from post_training_options import NETWORKS, Images, right, row_of

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.files import write_json
from gmpq_tf.post_training import refine

ENDS, FIRST = None, "first"


def searched(
    model: keras.Model, images: np.ndarray, budget: str, args: argparse.Namespace
) -> gmpq.BitwidthPolicy:
    """The policy of a budget, or the uniform one of 8 bits for "W8A8"."""
    if budget == "W8A8":
        return gmpq.BitwidthPolicy.uniform(model, 8, 8)
    pinned = None
    if args.pinned == FIRST:
        pinned = {next(layer.name for layer in model.layers if layer.weights): (8, 8)}
    space = gmpq.SearchSpace(
        tuple(map(int, args.kernels.split(","))),
        tuple(map(int, args.inputs.split(","))),
        pinned=pinned,
    )
    name = f"{budget}-{args.kernels}-{args.inputs}-{args.pinned}"
    return gmpq.search_policy(
        model,
        images,
        "loss_delta",
        budget=budget,
        space=space,
        storage=args.storage,
        images=args.table,
        calibration_images=len(images),
        journal=Path(args.workdir) / f"{args.network}-{name}.journal",
    ).policy


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p that images change sides each way alike (McNemar's test)."""
    count = gained + lost
    tail = sum(math.comb(count, k) for k in range(min(gained, lost) + 1)) / 2**count
    return min(1.0, 2 * tail)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` images."""
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    bottom = 1 + z * z / count
    return (middle - spread) / bottom, (middle + spread) / bottom


def file_row(
    student: keras.Model, tested: Images, storage: str, first: np.ndarray | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Accuracy of a file's integers, its bytes, and how decisions changed."""
    with tempfile.TemporaryDirectory() as folder:
        report = export_tflite(
            student,
            Path(folder) / "model.tflite",
            storage=storage,
            verify_data=tested[0][:100],
            least_agreement=0.0,
            latency_runs=0,
        )
    hits = right(gmpq.integer_twin(student), tested)
    row = row_of(hits, first, 0.0)
    row["interval"] = wilson(row["accuracy"], len(hits))
    row["bytes"] = report.storage_bytes[storage]
    if first is not None:
        row["p"] = mcnemar(row["gained"], row["lost"])
    return row, hits


def main() -> None:
    """Measure each budget, print a line each, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", required=True, choices=NETWORKS)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder of TFDS data")
    parser.add_argument("--budget", action="append", required=True)
    parser.add_argument("--storage", default="packed")
    parser.add_argument("--kernels", default="4,5,6,8", help="candidates")
    parser.add_argument("--inputs", default="4,5,6,8", help="candidates")
    parser.add_argument("--pinned", choices=("ends", FIRST), default="ends")
    parser.add_argument("--table", type=int, default=32, help="images of the table")
    parser.add_argument("--used", type=int, default=128)
    parser.add_argument("--skipped", type=int, default=0)
    parser.add_argument("--tested", type=int, default=250)
    parser.add_argument("--workdir", default="runs/post_training")
    parser.add_argument("--output", required=True, help="JSON file to write")
    args = parser.parse_args()
    build, load = NETWORKS[args.network]
    model = build(args.weights)
    used, tested = load(args.data, args.used, args.tested, args.skipped)
    warnings.simplefilter("ignore")
    output = Path(args.output)
    record = json.loads(output.read_text()) if output.exists() else {"rows": {}}
    record["versions"] = {"tensorflow": tf.__version__, "keras": keras.__version__}
    record.setdefault("commands", []).append(" ".join(["python", *sys.argv]))
    rows = record["rows"]
    hits = right(model, tested)
    rows["float"] = row_of(hits, None, 0.0)
    rows["float"]["interval"] = wilson(rows["float"]["accuracy"], len(hits))
    for budget in args.budget:
        if budget in rows:
            continue
        start = perf_counter()
        policy = searched(model, used[0], budget, args)
        seconds = perf_counter() - start
        row: dict[str, Any] = {"search_seconds": round(seconds, 1)}
        row["bit_ops"] = gmpq.count_cost(model, policy).bit_ops
        student = gmpq.quantize_model(model, policy)
        gmpq.calibrate(student, used[0])
        gmpq.snap_biases(student)
        row["nearest"], nearest = file_row(student, tested, args.storage, None)
        student = gmpq.quantize_model(model, policy)
        start = perf_counter()
        state = Path(args.workdir) / f"{args.network}-{budget}.npz"
        done = refine(student, model, used[0], state=state)
        seconds = perf_counter() - start
        row["refined"], _ = file_row(student, tested, args.storage, nearest)
        row["refined"]["seconds"] = round(seconds, 1)
        row["blocks"] = {name: asdict(block) for name, block in done.blocks.items()}
        rows[budget] = row
        print(budget, {k: v for k, v in row.items() if k != "blocks"}, flush=True)
        write_json(output, record)


if __name__ == "__main__":
    main()
