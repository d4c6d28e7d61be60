"""Reads a whole HDF5 file in a separate process, to find out whether that is safe.

HDF5 is a C library: a damaged or hostile file may hang or crash it, which `except`
cannot catch. So `file_checks` runs this file by its path in a process that can be
ended:

  python hdf5_probe.py model.weights.h5        (or a .keras file, for what is inside)

It imports nothing of gmpq_tf, so that it starts quickly.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Unpacked arrays may take FREE_BYTES plus MOST_EXPANSION times the bytes of the file.
FREE_BYTES = 100_000_000
MOST_EXPANSION = 10
PROCESSOR_SECONDS = 2  # at least, and for each 100 MB; waiting does not count
BYTES_PER_SECOND = 50_000_000
INSIDE_KERAS = "model.weights.h5"


def probe(path: Path) -> None:
    """Reads every attribute and array of a file.

    Args:
        path: an HDF5 file, or a `.keras` file that holds one.

    Raises:
        ValueError: it refers to other files, holds something else than arrays of
            numbers, or claims far more bytes than it has.
        OSError: it is damaged.
    """
    import h5py

    content = _inside(path) if path.suffix == ".keras" else path
    limit = FREE_BYTES + MOST_EXPANSION * path.stat().st_size
    if content is not None:
        with h5py.File(content, "r") as file:
            for dataset in list(_datasets(file)):
                limit -= dataset.nbytes
                if limit < 0:
                    raise ValueError(
                        f"{dataset.name} unpacks to far more bytes than the file has"
                    )
                dataset[()]


def limit_processor(size: int) -> None:
    """Limits the processor time of this process, in case HDF5 loops forever.

    Windows has no such limit; there only the time-out of `file_checks` applies.

    Args:
        size: size of the file in bytes.
    """
    try:
        import resource
    except ImportError:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = math.ceil(usage.ru_utime + usage.ru_stime)
    seconds = used + PROCESSOR_SECONDS + size // BYTES_PER_SECOND
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _inside(path: Path) -> io.BytesIO | None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return io.BytesIO(archive.read(INSIDE_KERAS)) if INSIDE_KERAS in names else None


def _datasets(root: Any) -> Iterator[Any]:
    """Yields every array; visits each group once, because links may form a cycle."""
    import h5py

    groups, seen = [root], set()
    while groups:
        group = groups.pop()
        dict(group.attrs)
        address = h5py.h5o.get_info(group.id).addr
        names = [] if address in seen else list(group)
        seen.add(address)
        for name in names:
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                raise ValueError(f"{name} lies in another file")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                _check_dataset(item)
                yield item


def _check_dataset(item: Any) -> None:
    dict(item.attrs)
    if item.external or item.is_virtual:
        raise ValueError(f"{item.name} lies in another file")
    if item.dtype.kind == "O":  # variable-length texts, whose real size is unknown
        raise ValueError(f"{item.name} is no array of numbers")


if __name__ == "__main__":
    import h5py  # noqa: F401  before the limit: slow machines need seconds for it

    try:
        limit_processor(Path(sys.argv[1]).stat().st_size)
        probe(Path(sys.argv[1]))
    except Exception as error:  # h5py raises many kinds; `file_checks` reads the text
        sys.exit(f"{type(error).__name__}: {error}")
