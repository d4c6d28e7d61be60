"""Files that are whole or absent: written under a temporary name, then renamed."""

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` when the block ends well.

    The temporary file lies beside `path` and keeps its suffix, because some writers
    (Keras among them) choose the format by suffix. Missing folders are made.

    Args:
        path: the file to make or to replace.

    Yields:
        The path to write to; it must exist when the block ends.

    Raises:
        Whatever the block raised; `path` is then as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process number: machines that share a folder count from 1 each.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Writes a file whole or not at all.

    Args:
        path: the file to make or to replace; missing folders are made.
        data: its content; text is written as UTF-8.

    Returns:
        The path written.
    """
    content = data.encode("utf-8") if isinstance(data, str) else data
    with replace_file(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes a value as indented JSON.

    Args:
        path: the file to make or to replace.
        value: dicts, lists, numbers, text, None; NumPy numbers and arrays are
            written as plain ones, and NaN or infinity, which JSON lacks, as null.

    Returns:
        The path written.
    """
    text = json.dumps(_to_plain(value), indent=2, allow_nan=False)
    return write_atomic(path, text + "\n")


def append_jsonl(path: str | os.PathLike[str], record: Mapping[str, Any]) -> Path:
    """Adds one record to a JSON-lines file.

    The file is rewritten whole (it has one line an epoch), so that an interrupted run
    never leaves half a line for the resumed one to stumble over.

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
        ValueError: a line is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_parse_record(path, number, line) for number, line in enumerate(lines, 1)]


def _parse_record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
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


def _flush_to_disk(path: Path) -> None:
    # Without this a power cut can leave the new name on an empty file.
    with path.open("rb") as file:
        os.fsync(file.fileno())
