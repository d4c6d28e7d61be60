"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# Errors of a full disk, an exhausted quota, or a limit of the file size.
_TOO_MUCH = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
MAX_TEXT_BYTES = 10_000_000
MAX_DEPTH = 200
_DEPTH_MESSAGE = (
    f"JSON must be nested at most {MAX_DEPTH} deep. Received: more. Flatten it."
)


class FileWriteError(OSError):
    """A file could not be written; what was there before is unchanged."""


class DamagedFileError(ValueError):
    """A file is truncated or was changed since it was written."""


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path, which is renamed to `path` if the block succeeds.

    The temporary file is in the same folder and has the same suffix, because some
    writers (Keras among them) choose the format by the suffix. Missing folders are
    made.

    Args:
        path: the file to create or to replace.

    Yields:
        The path to write to; it must exist when the block ends.

    Raises:
        FileWriteError: the disk is full, or the folder cannot be made or written to.
        Other errors of the block, such as a missing file that it reads. In any case
        `path` is unchanged.
    """
    path = Path(path)
    # Not the process id: two machines that share a folder may have equal ones.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except FileWriteError:
        raise
    except OSError as error:
        if error.errno in _TOO_MUCH:
            raise FileWriteError(_space_message(path, error)) from error
        if _is_about(error, (temporary, *temporary.parents)):
            raise FileWriteError(_folder_message(path, error)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextmanager
def replace_files(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Like `replace_file` for files that belong together: all of them, or none.

    Args:
        *paths: the files to make or to replace.

    Yields:
        The paths to write to; they must exist when the block ends.

    Raises:
        FileWriteError: the disk is full, or a folder or file cannot be written to.
        Other errors of the block. In any case the files are unchanged.
    """
    targets = [Path(path) for path in paths]
    for path in targets:
        if path.is_dir():
            raise FileWriteError(
                f"A file must not be where a folder is. Received: {path}, which is "
                "one. Move it away, or choose another path."
            )
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as stack:
        yield [stack.enter_context(replace_file(path)) for path in targets]
        for path in targets:
            undo.enter_context(_kept(path))
        stack.close()  # the renaming, the last file first


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """Keeps a file under a second name, and restores it if the block fails."""
    copy = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    existed = path.exists()
    if existed:
        try:
            os.link(path, copy)
        except OSError:  # a file system without links
            shutil.copy2(path, copy)
    try:
        yield
    except BaseException:
        if not existed:
            path.unlink(missing_ok=True)
        elif copy.exists():
            copy.replace(path)  # does nothing if both names refer to the same file
        raise
    finally:
        copy.unlink(missing_ok=True)


def remove_temporaries(path: str | os.PathLike[str]) -> None:
    """Removes temporary files that killed writers of a file have left beside it.

    Args:
        path: a file that no process is writing now.
    """
    path = Path(path)
    start, end = re.escape(f".{path.stem}."), re.escape(f".tmp{path.suffix}")
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        if re.fullmatch(f"{start}[0-9a-f]{{32}}{end}", other.name):
            other.unlink(missing_ok=True)


def check_space(path: str | os.PathLike[str], size: int) -> None:
    """Checks that a file will fit on the disk before it is written.

    Args:
        path: the file, which is written before it replaces an old one.
        size: size of the new file, in bytes.

    Raises:
        FileWriteError: the disk has less free space.
    """
    folder = next(p for p in Path(path).absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if free < size:
        cause = f"{size} bytes, of which {free} are free"
        raise FileWriteError(_space_message(Path(path), cause))


def check_target(path: str | os.PathLike[str]) -> None:
    """Checks that a file could be written, before it is made; nothing is written.

    Args:
        path: the file to create or to replace.

    Raises:
        FileWriteError: a folder is there, or its own cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise FileWriteError(_folder_message(path, "which is a folder"))
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir():
        raise FileWriteError(_folder_message(path, f"{above} is no folder"))
    if not os.access(above, os.W_OK | os.X_OK):
        raise FileWriteError(_folder_message(path, f"{above} cannot be written to"))


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


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> Path:
    """Writes arrays whole or not at all.

    Args:
        path: the `.npz` file to make or to replace.
        arrays: name -> array of numbers, of any shape; one more, named "count", is
            added.

    Returns:
        The path written.
    """
    with replace_file(path) as temporary:
        everything = {**arrays, "count": np.array(len(arrays))}
        np.savez(temporary, **everything)
    return Path(path)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all arrays of a file, and checks that they are undamaged.

    Args:
        path: a file made by `write_arrays`.

    Returns:
        Name -> array, of the shape and type written.

    Raises:
        DamagedFileError: a byte is missing or changed.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block
        raise DamagedFileError(_damage_message(path, "no plain file"))
    with path.open("rb") as file:
        try:
            return _checked_arrays(file)
        except Exception as error:  # zipfile and NumPy raise a dozen kinds
            raise DamagedFileError(_damage_message(path, error)) from error


def _checked_arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        wrong = archive.testzip()  # compares the CRC of every member
    if wrong is not None:
        raise ValueError(f"checksum of {wrong}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: np.asarray(stored[name]) for name in stored.files}
    # A damaged table of contents can hide members.
    if int(arrays.pop("count", np.array(-1))) != len(arrays):
        raise ValueError("arrays are missing")
    return arrays


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

    The file is rewritten completely (it has only one line an epoch), so that an
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


def _is_about(error: OSError, paths: Iterable[Path]) -> bool:
    """Whether an error was caused by one of some paths, such as by opening it."""
    named = error.filename
    if isinstance(named, bytes):
        named = os.fsdecode(named)
    return isinstance(named, str | os.PathLike) and Path(named) in paths


def _space_message(path: Path, cause: object) -> str:
    return (
        "A file must fit on the disk. "
        f"Received: {path} ({cause}). Make room or choose another folder; what was "
        "there before is unchanged."
    )


def _folder_message(path: Path, cause: object) -> str:
    return (
        "A file must be written into a folder that can be made and written to. "
        f"Received: {path} ({cause}). Change its permissions or choose another folder; "
        "what was there before is unchanged."
    )


def _damage_message(path: Path, cause: object) -> str:
    text = " ".join(str(cause).split())[:80]
    return (
        f"A file must be as it was written. Received: {path}, which is truncated or "
        f"damaged ({text}). Delete it or put a copy back."
    )


def _flush_to_disk(path: Path) -> None:
    # Without this a power cut can leave the new name on an empty file.
    with path.open("r+b") as file:  # Windows flushes what is open for writing only
        os.fsync(file.fileno())
