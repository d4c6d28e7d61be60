"""Sections of the page: the value of every choice, and how sure the search was."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.budget import SLACK
from gmpq_tf.files import parse_json, read_text
from gmpq_tf.report.layout import VALUES
from gmpq_tf.report.schema import REMEDY, ReportError, check_kind, named, take

SIDES = ("weights", "activations")
TAKEN = ' class="taken"'


def read_values(workdir: str | Path) -> Mapping[str, Any] | None:
    """Reads `search/values.json`.

    Args:
        workdir: the folder of the run.

    Returns:
        Its content; None where there is no such file, as in runs of earlier versions.

    Raises:
        ReportError: it is not JSON, or has the wrong form.
    """
    path = Path(workdir) / "search" / VALUES
    if not path.is_file():
        return None
    with named(f"search/{VALUES}"):
        try:
            data = parse_json(read_text(path))
        except ValueError as error:
            raise ReportError(
                f"It must be JSON. Received: {error}. {REMEDY}"
            ) from error
        check_kind("values.json", data, Mapping)
        check_kind("margin", take(data, "margin"), Mapping)
        check_kind("margin.text", take(data["margin"], "text"), str)
        check_kind("values", take(data, "values"), Mapping)
        for name, entry in data["values"].items():
            check_kind(f"values.{name}", entry, Mapping)
            for side in SIDES:
                check_kind(f"values.{name}.{side}", take(entry, side), Mapping)
                for bits, value in entry[side].items():
                    _check_value(f"values.{name}.{side}", bits, value)
        if "decisions" in data:  # not in files of earlier versions
            _check_decisions(data["decisions"])
        return data


def decision_line(workdir: Path) -> Iterator[str]:
    """Yields how sure the search was, with advice; nothing if that is not known."""
    try:
        data = read_values(workdir)
    except ReportError as error:
        yield f"Values left out: {error}"
        return
    if data is not None:
        yield str(data["margin"]["text"])
        decisions = data.get("decisions", {}).get("text")
        if decisions:
            yield str(decisions)


def values_section(
    workdir: Path, taken: Mapping[str, tuple[int, int]] | None = None
) -> Iterator[str]:
    """Yields tables of the value of each choice; the best of a row is 0 or near it.

    Args:
        workdir: the folder of the run.
        taken: layer -> (weight bits, activation bits) of the policy, which are marked.
    """
    try:
        data = read_values(workdir)
    except ReportError:  # said above
        return
    if not data or not data["values"]:
        return
    yield "<section>\n<h2>Values</h2>"
    for place, side in enumerate(SIDES):
        yield from _side(data["values"], side, place, taken or {})
    yield (
        '<p class="note">What the search thought of each choice: values of a policy\'s '
        f"choices are added, and the highest sum within the budgets is taken (bold)"
        f"{_of_which(data)}.</p>"
    )
    yield from _decided(data.get("decisions", {}).get("layers", {}))
    yield "</section>"


def _of_which(data: Mapping[str, Any]) -> str:
    """Which policies are compared, of a search that must spend its budget."""
    if not data.get("spends", True):  # files of earlier versions do not say it
        return ""
    share = f"{100 * (1 - SLACK):.0f} %"
    return f", of policies that spend {share} or more of the first budget if any do"


def _side(
    values: Mapping[str, Any], side: str, place: int, taken: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the table of weights or of activations; both are too wide for a page."""
    widths = sorted({int(bits) for entry in values.values() for bits in entry[side]})
    head = "".join(f'<th scope="col">{"WA"[place]}{bits}</th>' for bits in widths)
    yield f'<div class="wide">\n<table>\n<thead><tr><th scope="col">layer</th>{head}'
    yield "</tr></thead>\n<tbody>"
    for name, entry in values.items():
        bits_taken = taken[name][place] if name in taken else None
        cells = "".join(
            f"<td{TAKEN if bits == bits_taken else ''}>"
            f"{_cell(entry[side].get(str(bits)))}</td>"
            for bits in widths
        )
        yield f"<tr><td>{html.escape(str(name))}</td>{cells}</tr>"
    yield "</tbody>\n</table>\n</div>"


def _decided(layers: Mapping[str, Any]) -> Iterator[str]:
    """Yields a table of how sure each choice is; nothing if that is not known."""
    if not layers:
        return
    yield '<div class="wide">\n<table>\n<thead><tr><th scope="col">layer</th>'
    for side in SIDES:
        yield f'<th scope="col">{side}</th><th scope="col">instead</th>'
        yield '<th scope="col">standard errors</th>'
    yield "</tr></thead>\n<tbody>"
    for name, entry in layers.items():
        cells = "".join(_choice(entry.get(side)) for side in SIDES)
        yield f"<tr><td>{html.escape(str(name))}</td>{cells}</tr>"
    yield "</tbody>\n</table>\n</div>"
    yield (
        '<p class="note">By how many standard errors the policy is better than the '
        "best one that takes another bit-width there; below 2 it may be chance. Empty "
        "where nothing else is possible, or importances have no measured error.</p>"
    )


def _choice(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "<td></td><td></td><td></td>"
    errors = entry["in_errors"]
    sure = _cell(errors) + ("" if errors is None or entry["decided"] else ", open")
    return f"<td>{entry['bits']}</td><td>{_cell(entry['instead'])}</td><td>{sure}</td>"


def _check_decisions(data: Any) -> None:
    check_kind("decisions", data, Mapping)
    check_kind("decisions.text", take(data, "text"), str)
    check_kind("decisions.layers", take(data, "layers"), Mapping)
    for name, entry in data["layers"].items():
        check_kind(f"decisions.{name}", entry, Mapping)
        for side, own in entry.items():
            place = f"decisions.{name}.{side}"
            check_kind(place, own, Mapping)
            take(own, "decided")
            for key in ("bits", "instead", "in_errors"):
                value = take(own, key)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number and (value is not None or key == "bits"):
                    raise ReportError(
                        f"{place}.{key} must be a number. "
                        f"Received: {value!r:.80}. {REMEDY}"
                    )


def _check_value(place: str, bits: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (bits.isascii() and bits.isdecimal() and len(bits) < 3):
        raise ReportError(
            f"{place} must hold numbers by bits. "
            f"Received: {bits!r:.80}: {value!r:.80}. {REMEDY}"
        )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"
