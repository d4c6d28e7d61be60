"""What tells the images of a split from other images under the same name."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.data.splits import ArraySplit, FileSplit, Split
from gmpq_tf.data.stream import StreamSplit


def identity_of(split: Split) -> str:
    """Returns 16 hex digits that change with what a split holds.

    Of files these are class, name, size and time of the last change; of a TFDS set its
    version and the examples that are taken; of arrays the values.

    Args:
        split: As its source gives it, before images are read into memory.
    """
    digest = hashlib.sha256(str(split.size).encode())
    for part in _parts(split):
        digest.update(part)
    return digest.hexdigest()[:16]


def _parts(split: Split) -> list[bytes]:
    if isinstance(split, FileSplit):
        return [
            _file(path, _plain(split.labels, index))
            for index, path in enumerate(split.paths)
        ]
    if isinstance(split, StreamSplit):
        builder = split.builder
        named = f"{builder.info.full_name} {split.name} {split.ranges}"
        chosen = b"" if split.chosen is None else split.chosen.tobytes()
        return [named.encode(), chosen, *(p for o in split.others for p in _parts(o))]
    if isinstance(split, ArraySplit):
        return [split.images.tobytes(), split.labels.tobytes()]
    return []


def _plain(labels: Any, index: int) -> Any:
    """The label of an image: its class, or a digest of its objects."""
    if not isinstance(labels, Mapping):
        return int(labels[index])
    rows = [labels[name][index].tobytes() for name in sorted(labels)]
    return hashlib.sha256(b"".join(rows)).hexdigest()


def _file(path: str, label: Any) -> bytes:
    # Not the folders above: a data set may be moved.
    state = Path(path).stat()
    words = (label, Path(path).name, state.st_size, state.st_mtime_ns)
    return repr(words).encode("utf-8", "surrogateescape")
