"""The results of a sweep: a table, and the models' figure against bit operations."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from gmpq_tf.files import write_atomic
from gmpq_tf.report.plots import front, plot_front, png_bytes
from gmpq_tf.report.schema import LOSSES, METRICS, ResultRow
from gmpq_tf.run.records import read_json
from gmpq_tf.run.stage import Stage
from gmpq_tf.train.sweep_spec import Flags

COLUMNS = ("bit_ops", "weight_bytes", "images", "split")


def write_results(workdir: Path, names: list[str]) -> Path:
    """Writes sweep.csv and a picture of the points that are finished.

    The picture is `accuracy_bops.png` or, of tasks that are compared by another figure,
    has its name: `map_07_bops.png`, `loss_bops.png`.

    Args:
        workdir: folder of the sweep.
        names: the points, in order.

    Returns:
        The path of sweep.csv.
    """
    folders = [workdir / "points" / name for name in names]
    rows = [row for folder in folders if (row := point_row(folder))]
    figures = dict.fromkeys(map(figure_of, rows)) or {"accuracy": None}
    text = io.StringIO()
    columns = ("point", *figures, *COLUMNS)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = write_atomic(workdir / "sweep.csv", text.getvalue())
    for figure in figures:
        # Without images or labels it is None.
        known = [_result_row(r, figure) for r in rows if r.get(figure) is not None]
        if known:
            picture = png_bytes(plot_front(known, front(known), figure))
            write_atomic(workdir / f"{figure}_bops.png", picture)
    return path


def point_row(folder: Path) -> Flags | None:
    """Returns the row of a point in sweep.csv; None where it is not finished."""
    evaluation = read_json(folder / "finetune" / "evaluation.json")
    if not {"accuracy", "images", "split"} <= evaluation.keys():
        return None
    figure = evaluation.get("metric", "map_07" if "map_07" in evaluation else None)
    figure = figure if figure in METRICS else "accuracy"
    # Counted on the float model, because the student also has variables of quantizers.
    cost = Stage(folder, "finetune").results()
    return {
        "point": folder.name,
        figure: evaluation.get(figure),
        "bit_ops": cost["bit_ops"],
        "weight_bytes": cost["weight_bytes"],
        "images": evaluation["images"],
        "split": evaluation["split"],
    }


def figure_of(row: Flags) -> str:
    """Returns the figure that the model of a row is compared by: a key of `METRICS`."""
    return next(name for name in METRICS if name in row)


def _result_row(row: Flags, figure: str) -> ResultRow:
    return ResultRow(
        row["point"],
        row[figure],
        row["bit_ops"],
        row["weight_bytes"],
        share=figure not in LOSSES,
    )
