"""Files of arrays that tell when they are damaged."""

import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gmpq_tf.files.replacing import replace_file


class DamagedFileError(ValueError):
    """A file is truncated or was changed since it was written."""


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


def _damage_message(path: Path, cause: object) -> str:
    text = " ".join(str(cause).split())[:80]
    return (
        f"A file must be as it was written. Received: {path}, which is truncated or "
        f"damaged ({text}). Delete it or put a copy back."
    )
