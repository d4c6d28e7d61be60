"""JSON and other small files of text, some from an untrusted source."""

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.files.replacing import write_atomic

MAX_TEXT_BYTES = 10_000_000
MAX_DEPTH = 200
_DEPTH_MESSAGE = (
    f"JSON must be nested at most {MAX_DEPTH} deep. Received: more. Flatten it."
)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes a value as indented JSON.

    Args:
        path: the file to make or to replace.
        value: dicts, lists, numbers, text, None; NumPy numbers and arrays are
            written as plain ones, and NaN or infinity, which JSON lacks, as null.

    Returns:
        The path written.
    """
    return write_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON of a value, as `write_json` writes it."""
    return json.dumps(_to_plain(value), indent=2, allow_nan=False) + "\n"


def append_jsonl(path: str | os.PathLike[str], record: Mapping[str, Any]) -> Path:
    """Adds one record to a JSON-lines file.

    The file is rewritten completely (it has only one line per epoch), so that an
    interrupted run never leaves half a line.

    Args:
        path: the file to make or to extend.
        record: one JSON object; values as for `write_json`.

    Returns:
        The path written.
    """
    path = Path(path)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    line = json.dumps(_to_plain(record), allow_nan=False)
    return write_atomic(path, f"{before}{line}\n")


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the records of a JSON-lines file, none where there is no file.

    Args:
        path: a file made by `append_jsonl`.

    Returns:
        The records, oldest first.

    Raises:
        ValueError: a line is not a JSON object, or the file is no text.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = read_text(path).splitlines()
    return [_parse_record(path, number, line) for number, line in enumerate(lines, 1)]


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads a file of settings or results, all of which are small.

    Args:
        path: the file.

    Returns:
        Its text.

    Raises:
        ValueError: it is not a plain file (a pipe would never end), not UTF-8, or
            larger than 10 MB (parsed JSON takes thirty times the memory).
        OSError: it cannot be opened.
    """
    path = Path(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_TEXT_BYTES:
        raise ValueError(
            f"A file to read must be a plain one of at most {MAX_TEXT_BYTES} bytes. "
            f"Received: {path}, mode={stat.filemode(status.st_mode)}, "
            f"size={status.st_size}. Pass the file that was meant."
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"A file to read must be UTF-8 text. Received: {path} ({error.reason} at "
            f"byte {error.start}). Save it as UTF-8, or pass the file that was meant."
        ) from error


def parse_json(text: str) -> Any:
    """Parses JSON from an untrusted source.

    Unlike `json.loads` it refuses names that occur twice in an object (`json.loads`
    keeps the last), and nesting so deep that recursive code would fail.

    Args:
        text: JSON.

    Returns:
        The value.

    Raises:
        ValueError: the text is not such JSON.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_names)
    except RecursionError as error:
        raise ValueError(_DEPTH_MESSAGE) from error
    inner = [value]
    for _ in range(MAX_DEPTH):
        inner = [item for each in inner for item in _items(each)]
        if not inner:
            return value
    raise ValueError(_DEPTH_MESSAGE)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in pairs:
        if name in names:
            raise ValueError(
                "A name must occur once. "
                f"Received: {name[:80]!r} twice. Delete or rename one of them."
            )
        names[name] = value
    return names


def _parse_record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise ValueError(_record_message(path, number, line)) from error
    if not isinstance(record, dict):
        raise ValueError(_record_message(path, number, line))
    return record


def _record_message(path: Path, number: int, line: str) -> str:
    return (
        f"Every line of {path} must be one JSON object. "
        f"Received: line {number}={line[:80]!r}. Delete that line or the file."
    )


def _to_plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
