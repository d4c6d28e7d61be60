"""Renders figures as files, and as SVG in a page, whose text can be searched."""

from __future__ import annotations

import html
import io
import re
from typing import Literal

import matplotlib
from matplotlib.figure import Figure

from gmpq_tf.report.schema import ReportError

FORMATS = ("png", "svg", "pdf")
FigureFormat = Literal["png", "svg", "pdf"]
DPI = 150
# Metadata to leave out: dates and program names would make files of the same figure
# differ.
_PLAIN: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
_BEFORE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'(<svg[^>]*?) width="[\d.]+pt"|(<svg[^>]*?) height="[\d.]+pt"')
_NAMED = re.compile(r'(\bid="|"#|url\(#)')


def figure_bytes(figure: Figure, kind: FigureFormat = "png") -> bytes:
    """Renders a figure; the same figure gives the same bytes.

    Args:
        figure: any matplotlib figure.
        kind: "png", "svg" or "pdf"; in the last two, text stays text.

    Returns:
        The content of the file.

    Raises:
        ReportError: the kind is unknown.
    """
    if kind not in FORMATS:
        raise ReportError(
            f"A figure is written as {', '.join(FORMATS)}. Received: format={kind!r}. "
            "Give one of them."
        )
    buffer = io.BytesIO()
    options = {"svg.fonttype": "none", "svg.hashsalt": "gmpq", "pdf.fonttype": 42}
    with matplotlib.rc_context(options):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=_PLAIN[kind])
    return buffer.getvalue()


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """Renders a figure as an element of an HTML page.

    Args:
        figure: any matplotlib figure.
        prefix: put before every id, so that ids of several figures on a page differ.
        label: description of the figure for screen readers.

    Returns:
        An `<svg>` element in its own width, or narrower where the page is.
    """
    text = figure_bytes(figure, "svg").decode("utf-8")
    text = _METADATA.sub("", _BEFORE.sub("", text))
    text = _once(_NAMED.sub(rf"\g<1>{prefix}-", text))
    width = f"{figure.get_figwidth():.2f}in"
    text = _SIZE.sub(r"\1\2", _SIZE.sub(r"\1\2", text))
    named = f'role="img" aria-label="{html.escape(label)}" style="max-width: {width}"'
    return text.replace("<svg", f"<svg {named}", 1).strip()


def _once(text: str) -> str:
    """Removes repeated ids, which matplotlib writes for markers."""
    seen: set[str] = set()

    def kept(match: re.Match[str]) -> str:
        again = match[0] in seen
        seen.add(match[0])
        return "" if again else match[0]

    return re.sub(r' id="[^"]*"', kept, text)
