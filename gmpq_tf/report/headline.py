"""The headline of the report: size, accuracy, time and cost, with comparisons."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmpq_tf.files import parse_json, read_text
from gmpq_tf.report.schema import LOSSES, METRICS, ResultRow, Summary
from gmpq_tf.report.table import (
    format_bytes,
    format_figure,
    format_percent,
    format_times,
)

EXPORT_REPORT = "export_report.json"
INT8 = "fast"  # the storage that keeps kernels in INT8
# Name of a row -> folder of its model, where the two differ.
FOLDERS = {"searched": "finetune"}


@dataclass(frozen=True)
class Fact:
    """A number of the headline, and a number to compare it with.

    Args:
        name: heading, such as "File".
        value: the number, as printed.
        beside: the number to compare with, such as "float 376.0 kB".
    """

    name: str
    value: str
    beside: str


def headline(
    workdir: Path, summary: Summary, predicted_ms: float | None = None
) -> Iterator[str]:
    """Yields the HTML of the facts about the model that the page describes.

    Args:
        workdir: folder of the run.
        summary: its results.
        predicted_ms: milliseconds predicted by a latency table; None: not known.
    """
    row = main_row(summary.rows)
    if row is None:
        return
    found = list(facts(workdir, summary, row, predicted_ms))
    if not found:
        return
    yield '<dl class="facts">'
    for fact in found:
        yield (
            f"<div><dt>{html.escape(fact.name)}</dt><dd><strong>"
            f"{html.escape(fact.value)}</strong> {html.escape(fact.beside)}</dd></div>"
        )
    yield "</dl>"


def main_row(rows: Sequence[ResultRow]) -> ResultRow | None:
    """Returns the row of the searched model or, without one, the last with a file.

    Args:
        rows: rows of the result table.
    """
    searched = [row for row in rows if row.name.split()[0] in ("searched", "compress")]
    return next(iter(searched or [r for r in rows if r.file_bytes][::-1]), None)


def facts(
    workdir: Path,
    summary: Summary,
    row: ResultRow,
    predicted_ms: float | None = None,
) -> Iterator[Fact]:
    """Yields the known facts about a model's size, accuracy, time and cost.

    Args:
        workdir: folder of the run.
        summary: its results.
        row: row of the model.
        predicted_ms: as in `headline`.
    """
    export = read_export(workdir, row)
    others = [r for r in summary.rows if r.name.split()[0] == "uniform" and r != row]
    plain = next((each for each in summary.rows if each.name == "float"), None)
    storage = export.get("storage")
    if row.file_bytes is not None:
        sizes = {"float weights": plain.weight_bytes if plain else None}
        if storage != INT8:
            sizes["all kernels in INT8"] = _number(export, "storage_bytes", INT8)
        beside = [f"{k} {format_bytes(v)}" for k, v in sizes.items() if v]
        yield Fact("File", format_bytes(row.file_bytes), "; ".join(beside))
    if _right(row) is not None:
        rows = [each for each in (plain, *others) if each is not None]
        beside = [
            f"{each.name} {format_figure(_right(each), summary.metric)}"
            for each in rows
        ]
        classes = summary.metric == "accuracy"
        of = "Accuracy" if classes else METRICS[summary.metric]
        of = of[0].upper() + of[1:] if summary.metric in LOSSES else of
        of += "" if row.tflite_accuracy is None else " of the file"
        value = format_figure(_right(row), summary.metric)
        yield Fact(of, value, "; ".join(beside))
    if row.float_agreement is not None:
        alike = format_percent(row.float_agreement)
        yield Fact("As the float model", alike, "of images decided alike; no labels")
    took = _number(export, "latency_ms", storage)
    if took is not None:
        times = {"predicted": predicted_ms}
        times["float"] = _number(export, "latency_ms", "float")
        if storage != INT8:
            times["INT8"] = _number(export, "latency_ms", INT8)
        beside = [f"{k} {v:.3g} ms" for k, v in times.items() if v is not None]
        beside.append("an image, one thread, where it was exported")
        yield Fact(f"Time in {storage} storage", f"{took:.3g} ms", "; ".join(beside))
    share = summary.full_precision_bit_ops / row.bit_ops
    yield Fact("Bit operations", f"1/{format_times(share)}", "of full precision")


def read_export(workdir: Path, row: ResultRow) -> Mapping[str, Any]:
    """Returns the export report of a row's model; {} where there is none.

    Args:
        workdir: folder of the run.
        row: row of the model.
    """
    word = row.name.split()[0]
    folder = row.name.partition(" (")[2].rstrip(")") or FOLDERS.get(word, word)
    if any(sign in folder for sign in "/\\") or folder in ("", ".", ".."):
        return {}
    try:
        found = parse_json(read_text(workdir / folder / EXPORT_REPORT))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _right(row: ResultRow) -> float | None:
    return row.accuracy if row.tflite_accuracy is None else row.tflite_accuracy


def _number(found: Mapping[str, Any], name: str, key: Any) -> float | None:
    inner = found.get(name)
    value = inner.get(key) if isinstance(inner, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if value > 0 else None
