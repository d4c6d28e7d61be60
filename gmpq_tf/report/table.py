"""The result table, as text and as cells."""

import math
import textwrap
from collections.abc import Iterable, Sequence

from gmpq_tf.report.schema import LOSSES, METRICS, ResultRow

AS_FLOAT = "as float"  # where there are no labels
NAME_WIDTH = 26  # keeps a row within 88 columns; longer names continue below


def format_percent(fraction: float | None) -> str:
    """Formats a share as percentage.

    Args:
        fraction: 0..1, or None.

    Returns:
        Text such as "98.06 %", or "-".
    """
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def format_figure(figure: float | None, metric: str = "accuracy") -> str:
    """Prints what models are compared by.

    Args:
        figure: a share or, of a metric in `LOSSES`, any number; or None.
        metric: a name in `METRICS`.

    Returns:
        such as "98.06 %", "0.01234", or "-".
    """
    if metric not in LOSSES or figure is None:
        return format_percent(figure)
    return f"{figure:.4g}"


def format_bytes(count: float | None) -> str:
    """Formats a size (kB = 1e3, MB = 1e6 bytes).

    Args:
        count: bytes, or None.

    Returns:
        Text such as "98.5 kB", or "-".
    """
    if count is None:
        return "-"
    if count < 1e3:
        return f"{count:.0f} B"
    # 999,950 bytes and more would print as 1000.0 kB.
    return f"{count / 1e3:.1f} kB" if count < 999_950 else f"{count / 1e6:.2f} MB"


def format_times(ratio: float) -> str:
    """Prints how many times something is less: "28", "1.4".

    Args:
        ratio: of the larger to the smaller.
    """
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def giga_decimals(counts: Iterable[float]) -> int:
    """Returns how many decimals show the smallest count, in 1e9, with three digits.

    Args:
        counts: positive numbers.

    Returns:
        Number of decimals, 0..6.
    """
    least = min(counts) / 1e9
    return min(max(2 - math.floor(math.log10(least)), 0), 6)


def agreement(row: ResultRow) -> float | None:
    """Returns the share of images on which a file and its model agree.

    The model is computed in the file's integer arithmetic if that was measured, else in
    float.

    Args:
        row: the results of one model.

    Returns:
        0..1, or None where there is no file.
    """
    return row.agreement if row.twin_agreement is None else row.twin_agreement


def table_cells(
    rows: Sequence[ResultRow], metric: str = "accuracy"
) -> list[tuple[str, ...]]:
    """Formats every value of the result table.

    Args:
        rows: the results, at least one.
        metric: meaning of the rows' `accuracy`: a name in `METRICS`.

    Returns:
        The header and one tuple of texts for each row.
    """
    decimals = giga_decimals(row.bit_ops for row in rows)
    columns = {
        "model": [row.name for row in rows],
        METRICS[metric]: [format_figure(row.accuracy, metric) for row in rows],
        "GBOPs": [f"{row.bit_ops / 1e9:.{decimals}f}" for row in rows],
        "weights": [format_bytes(row.weight_bytes) for row in rows],
        "file": [format_bytes(row.file_bytes) for row in rows],
        ".tflite": [format_figure(row.tflite_accuracy, metric) for row in rows],
        "agreement": [format_percent(agreement(row)) for row in rows],
    }
    if any(row.float_agreement is not None for row in rows):
        if all(row.accuracy is None for row in rows):
            del columns[METRICS[metric]], columns[".tflite"]
        columns[AS_FLOAT] = [format_percent(row.float_agreement) for row in rows]
    return [tuple(columns), *zip(*columns.values(), strict=True)]


def format_table(rows: Sequence[ResultRow], metric: str = "accuracy") -> str:
    """Formats results as an aligned table for a terminal of 88 columns.

    Args:
        rows: the results, at least one.
        metric: meaning of the rows' `accuracy`: a name in `METRICS`.

    Returns:
        Lines of text: a header, a rule, the rows. `accuracy` is that of the Keras
        model, `.tflite` that of the exported file; for `agreement` see `agreement`.
    """
    cells = table_cells(rows, metric)
    names = [textwrap.wrap(row[0], NAME_WIDTH) for row in cells]
    name_width = max(len(part) for parts in names for part in parts)
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[1:]]
    lines = [
        line
        for parts, row in zip(names, cells, strict=True)
        for line in _lines(parts, row[1:], name_width, widths)
    ]
    rule = "  ".join("-" * width for width in (name_width, *widths))
    return "\n".join([lines[0], rule, *lines[1:]])


def _lines(
    parts: Sequence[str], values: Sequence[str], name_width: int, widths: Sequence[int]
) -> list[str]:
    padded = [value.rjust(width) for value, width in zip(values, widths, strict=True)]
    return ["  ".join([parts[0].ljust(name_width), *padded]), *parts[1:]]
