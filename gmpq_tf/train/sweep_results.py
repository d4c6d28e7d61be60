"""The results of a sweep: a table, and accuracy drawn against bit operations."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from gmpq_tf.files import write_atomic
from gmpq_tf.report.plots import plot_front, png_bytes
from gmpq_tf.report.schema import ResultRow
from gmpq_tf.run.records import read_json
from gmpq_tf.run.stage import Stage
from gmpq_tf.train.sweep_spec import Flags

COLUMNS = ("point", "accuracy", "bit_ops", "weight_bytes", "images", "split")


def write_results(workdir: Path, names: list[str]) -> Path:
    """Writes sweep.csv and accuracy_bops.png of the points that are finished.

    Args:
        workdir: folder of the sweep.
        names: the points, in order.

    Returns:
        The path of sweep.csv.
    """
    folders = [workdir / "points" / name for name in names]
    rows = [row for folder in folders if (row := point_row(folder))]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = write_atomic(workdir / "sweep.csv", text.getvalue())
    # There is no accuracy without images or labels.
    known = [row for row in rows if row["accuracy"] is not None]
    if known:
        every, best = ([_result_row(r) for r in some] for some in (known, front(known)))
        write_atomic(workdir / "accuracy_bops.png", png_bytes(plot_front(every, best)))
    return path


def point_row(folder: Path) -> Flags | None:
    """Returns the row of a point in sweep.csv; None where it is not finished."""
    evaluation = read_json(folder / "finetune" / "evaluation.json")
    if not {"accuracy", "images", "split"} <= evaluation.keys():
        return None
    # Counted on the float model, because the student also has variables of quantizers.
    cost = Stage(folder, "finetune").results()
    return {
        "point": folder.name,
        "accuracy": evaluation["accuracy"],
        "bit_ops": cost["bit_ops"],
        "weight_bytes": cost["weight_bytes"],
        "images": evaluation["images"],
        "split": evaluation["split"],
    }


def front(rows: list[Flags]) -> list[Flags]:
    """Returns the Pareto front: points that no other beats in accuracy and cost.

    Args:
        rows: dicts with `accuracy` and `bit_ops`.

    Returns:
        The rows of the front, cheapest first.
    """
    best: list[Flags] = []
    for row in sorted(rows, key=lambda row: (row["bit_ops"], -row["accuracy"])):
        if not best or row["accuracy"] > best[-1]["accuracy"]:
            best.append(row)
    return best


def _result_row(row: Flags) -> ResultRow:
    values = [row[key] for key in ("accuracy", "bit_ops", "weight_bytes")]
    return ResultRow(row["point"], *values)
