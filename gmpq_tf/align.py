"""Rows of text as an aligned table."""

from collections.abc import Sequence


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as columns of equal width: the first left-aligned, others right.

    Args:
        header: title of each column.
        rows: one text for each column.

    Returns:
        Lines of text: the header, a line of dashes, the rows.
    """
    columns = zip(header, *rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(row, widths) for row in (header, rule, *rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = widths
    numbers = [text.rjust(width) for text, width in zip(row[1:], others, strict=True)]
    return "  ".join([row[0].ljust(first), *numbers]).rstrip()
