"""From a float model and images without labels to a file within a budget: how good?

    python benchmarks/post_training_targets.py --network=mobilenet_v2 \
        --weights=mobilenet_v2_imagenet.weights.h5 --data=tfds/nips2017_dev/1.0.0 \
        --budget=W5A5 --budget=W6A6 --used=128 --skipped=122 --tested=250 \
        --journal=runs/post_training/table.journal \
        --output=results/post_training/mobilenet_v2.json

For each budget: a policy by a label-free table of loss deltas, a student of nearest
rounding, the same corrected as `gmpq.compress` does by default, and the same refined
(`gmpq_tf.post_training.refine`), on the `--used` first images. `--skipped` images after
them are not looked at; accuracy is that of the `--tested` ones after those: of the
integer twin, which is what the file computes. What is done already is not done again
when the command is given a second time.
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
from gmpq_tf.compression.corrections import AUTO, make_student
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.files import write_json
from gmpq_tf.graph import searchable_names
from gmpq_tf.post_training import refine
from gmpq_tf.search.choose import choose
from gmpq_tf.search.problem import SearchProblem

FIRST = "first"
EIGHT = "W8A8"  # the uniform policy, not searched
VERIFIED = 16  # images that an export is checked on
HELD = 8  # one in so many of the used images compares corrections


def policies(
    model: keras.Model, images: np.ndarray, args: argparse.Namespace
) -> dict[str, gmpq.BitwidthPolicy]:
    """Budget -> policy: of one table of loss deltas without labels, but for W8A8.

    Args:
        model: the float model.
        images: [images, ...], without labels.
        args: of the command line.
    """
    wanted = [budget for budget in args.budget if budget != EIGHT]
    found = {EIGHT: gmpq.BitwidthPolicy.uniform(model, 8, 8)}
    if not wanted:
        return found
    pinned = None
    if args.pinned == FIRST:
        pinned = {searchable_names(model)[0]: (8, 8)}
    space = gmpq.SearchSpace(
        tuple(map(int, args.kernels.split(","))),
        tuple(map(int, args.inputs.split(","))),
        pinned=pinned,
    )
    of_bytes = wanted[0].endswith("B")
    result = gmpq.search_policy(
        model,
        images[: args.calibrated],
        "loss_delta",
        budget=wanted[0],
        space=space,
        storage=args.storage if of_bytes else None,
        images=args.table,
        calibration_images=args.calibrated,
        journal=args.journal,
    )
    for budget in wanted:
        problem = SearchProblem.of(
            model, space, None, budget, TableOptions(args.storage)
        )
        bits = choose(result.values, problem.candidates, problem.limits)
        found[budget] = gmpq.BitwidthPolicy(model.name, bits)
    return found


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


def twin_row(
    student: keras.Model, tested: Images, first: np.ndarray | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """Accuracy of a file's integers, and how decisions differ from the `first`."""
    hits = right(gmpq.integer_twin(student), tested)
    row = row_of(hits, first, 0.0)
    row["interval"] = wilson(row["accuracy"], len(hits))
    if first is not None:
        row["p"] = mcnemar(row["gained"], row["lost"])
    return row, hits


def file_bytes(student: keras.Model, images: np.ndarray, storage: str) -> int:
    """Size of the verified file."""
    with tempfile.TemporaryDirectory() as folder:
        report = export_tflite(
            student,
            Path(folder) / "model.tflite",
            storage=storage,
            verify_data=images[:VERIFIED],
            least_agreement=0.0,
            latency_runs=0,
        )
    return report.storage_bytes[storage]


def corrected(
    model: keras.Model,
    policy: gmpq.BitwidthPolicy,
    used: np.ndarray,
    tested: Images,
    nearest: np.ndarray,
    correction: str,
) -> tuple[dict[str, Any], keras.Model]:
    """Figures of a student as `gmpq.compress` corrects it, and that student."""
    batches = [used[i : i + 16] for i in range(0, len(used), 16)]
    held = max(1, len(batches) // HELD)
    start = perf_counter()
    made = make_student(model, policy, batches[:-held], batches[-held:], correction)
    seconds = perf_counter() - start
    row, _ = twin_row(made.student, tested, nearest)
    row["seconds"] = round(seconds, 1)
    row["correction"] = made.correction
    row["divergences"] = dict(made.divergences)
    return row, made.student


def measured(
    model: keras.Model,
    policy: gmpq.BitwidthPolicy,
    used: np.ndarray,
    tested: Images,
    args: argparse.Namespace,
    state: Path,
) -> dict[str, Any]:
    """Figures of one policy, with nearest rounding and refined."""
    row: dict[str, Any] = {"bit_ops": gmpq.count_cost(model, policy).bit_ops}
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, [used[i : i + 16] for i in range(0, len(used), 16)])
    gmpq.snap_biases(student)
    row["nearest"], nearest = twin_row(student, tested)
    print(row, flush=True)
    for name in (AUTO, *args.correction):
        row[name], student = corrected(model, policy, used, tested, nearest, name)
        row[name]["bytes"] = file_bytes(student, tested[0], args.storage)
        print(row, flush=True)
    row["policy"] = {n: [b.weight_bits, b.activation_bits] for n, b in policy.items()}
    if not args.refine:
        return row
    student = gmpq.quantize_model(model, policy)
    start = perf_counter()
    done = refine(student, model, used, state=state)
    seconds = perf_counter() - start
    row["refined"], _ = twin_row(student, tested, nearest)
    row["refined"]["seconds"] = round(seconds, 1)
    print(row, flush=True)
    row["blocks"] = {name: asdict(block) for name, block in done.blocks.items()}
    return row


def main() -> None:
    """Measure each budget, print a line each, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", required=True, choices=NETWORKS)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder of TFDS data")
    parser.add_argument("--budget", action="append", required=True)
    parser.add_argument("--storage", default="packed")
    parser.add_argument("--correction", action="append", default=[], help="beside auto")
    parser.add_argument("--kernels", default="4,5,6,8", help="candidates")
    parser.add_argument("--inputs", default="4,5,6,8", help="candidates")
    parser.add_argument("--pinned", choices=("ends", FIRST), default="ends")
    parser.add_argument("--table", type=int, default=32, help="images of the table")
    parser.add_argument("--used", type=int, default=128)
    parser.add_argument("--skipped", type=int, default=0)
    parser.add_argument("--tested", type=int, default=250)
    parser.add_argument("--calibrated", type=int, default=100, help="of the table")
    parser.add_argument("--refine", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--journal", required=True, help="of the table, made or read")
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
    searched = policies(model, used[0], args)
    for budget in args.budget:
        if budget in rows:
            continue
        state = Path(f"{args.journal}.{budget}.npz")
        rows[budget] = measured(model, searched[budget], used[0], tested, args, state)
        write_json(output, record)


if __name__ == "__main__":
    main()
