"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Errors of a full disk, an exhausted quota, or a limit of the file size.
_TOO_MUCH = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class FileWriteError(OSError):
    """A file could not be written; what was there before is unchanged."""


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


def _flush_to_disk(path: Path) -> None:
    # Without this a power cut can leave the new name on an empty file.
    with path.open("r+b") as file:  # Windows flushes what is open for writing only
        os.fsync(file.fileno())
