"""Checks that a folder can be written to, and locks it for one process at a time."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from gmpq_tf.run.errors import StageError

LOCKED = "Another process is at work"
_held: list[FileLock] = []  # a lock object that is garbage collected is released


def check_writable(folder: Path) -> None:
    """Refuses a folder in which nothing could be saved, before anything is computed.

    Args:
        folder: need not exist, but must be possible to create.

    Raises:
        StageError: it is a file, or it or its nearest existing parent cannot be written
            to.
    """
    path = next(p for p in (folder, *folder.absolute().parents) if _is_there(p))
    if path.is_dir() and os.access(path, os.W_OK | os.X_OK):
        return
    cause = "cannot be written to" if path.is_dir() else "is a file"
    raise StageError(
        "The workdir must be a folder that can be written to. "
        f"Received: {folder}; {path} {cause}. "
        "Change its permissions, or use another --workdir."
    )


def claim(path: Path, folder: Path) -> None:
    """Locks a folder for this process until the process ends, in whatever way.

    Args:
        path: the lock file; it is not deleted afterwards.
        folder: the folder it stands for, for the message.

    Raises:
        StageError: another process holds the lock, or the file system has no locks.
    """
    # All threads of this process share one lock, so a folder may be claimed again. On
    # a file system without locks we do not fall back to a marker file: it would remain
    # after a killed process.
    lock = FileLock(
        path,
        timeout=0,
        thread_local=False,
        is_singleton=True,
        fallback_to_soft=False,
        preserve_lock_file=True,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise StageError(
            f"A stage must be run by one process at a time. Received: {folder}. "
            f"{LOCKED} there: let it finish, or use another --workdir or --name."
        ) from error
    except OSError as error:
        raise StageError(
            "The workdir must be on a disk that can be written to and can lock files. "
            f"Received: {path} ({error.strerror}). Use another --workdir."
        ) from error
    _held.append(lock)


def _is_there(path: Path) -> bool:
    # Path.exists raises where a parent may not be looked into.
    return os.access(path, os.F_OK)
