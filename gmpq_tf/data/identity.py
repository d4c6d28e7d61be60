"""Identifies the images of a split, to notice when a resumed run reads others."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.data.splits import ArraySplit, FileSplit, Split
from gmpq_tf.data.stream import StreamSplit


def identity_of(split: Split) -> str:
    """Returns 16 hex digits, a digest of what a split holds.

    For files it covers class, name, size and time of the last change; for a TFDS set
    its version and the range of examples; for arrays the values.

    Args:
        split: The split from its source, before images are read into memory.
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
        labels = split.labels
        arrays = labels if isinstance(labels, Mapping) else {"": labels}
        rows = [(key.encode(), arrays[key].tobytes()) for key in sorted(arrays)]
        return [split.images.tobytes(), *(part for row in rows for part in row)]
    return []


def _plain(labels: Any, index: int) -> Any:
    """Returns the label of an image: its class, or a digest of its objects."""
    if not isinstance(labels, Mapping):
        label = labels[index]
        return int(label) if label.ndim == 0 else hashlib.sha256(label).hexdigest()
    rows = [labels[name][index].tobytes() for name in sorted(labels)]
    return hashlib.sha256(b"".join(rows)).hexdigest()


def _file(path: str, label: Any) -> bytes:
    # The folders above do not count: a data set may be moved.
    state = Path(path).stat()
    words = (label, Path(path).name, state.st_size, state.st_mtime_ns)
    return repr(words).encode("utf-8", "surrogateescape")
