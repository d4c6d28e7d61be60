"""Reads an HDF5 file once, whole, so that another process need not be the first to.

HDF5 is C: a damaged or hostile file may hang or crash it, which no `except` can help.
So `file_checks` runs this file by its path in a process that can be ended:

  python hdf5_probe.py model.weights.h5        (or a .keras file, for what is inside)

It imports nothing of gmpq_tf, so that it starts in a moment.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Beyond this many bytes, what is unpacked may take this many times the file.
FREE_BYTES = 100_000_000
MOST_EXPANSION = 10
PROCESSOR_SECONDS = 2  # for a file of no size, and for each 100 MB; no waiting counts
BYTES_PER_SECOND = 50_000_000
INSIDE_KERAS = "model.weights.h5"


def probe(path: Path) -> None:
    """Reads every attribute and array of a file.

    Args:
        path: an HDF5 file, or a `.keras` file that holds one.

    Raises:
        ValueError: it refers to other files, holds what is no array of numbers, or
            claims far more bytes than it has.
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
    """Lets the system end this process should HDF5 go round in circles.

    Windows has no such limit; there the limit of `file_checks` on the clock is left.

    Args:
        size: bytes of the file.
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
    """Every array; each group once, because links may lead in a circle."""
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
    if item.dtype.kind == "O":  # texts of any length, of which each may be repeated
        raise ValueError(f"{item.name} is no array of numbers")


if __name__ == "__main__":
    import h5py  # noqa: F401  before the limit: slow machines need seconds for it

    try:
        limit_processor(Path(sys.argv[1]).stat().st_size)
        probe(Path(sys.argv[1]))
    except Exception as error:  # h5py raises many kinds; the text is what is read
        sys.exit(f"{type(error).__name__}: {error}")
