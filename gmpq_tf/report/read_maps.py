"""Reads the images and attribution maps of a run."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gmpq_tf.report.read import require
from gmpq_tf.report.schema import REMEDY, AttributionMaps, ReportError, take

MAX_ARRAY_BYTES = 200_000_000  # of an .npz, unpacked; eight images take 10 MB


def read_attribution(workdir: str | Path, name: str) -> AttributionMaps:
    """Reads images and attribution maps.

    Args:
        workdir: the folder of the run.
        name: file name in it: an .npz with images [N, H, W, C] uint8, labels [N],
            teacher and student_* maps [N, h, w], rank_distance_* [N].

    Returns:
        the maps.

    Raises:
        ReportError: the file is missing, unreadable, or an array has the wrong shape.
    """
    arrays = read_npz(Path(workdir), name)
    images, labels = take(arrays, "images"), take(arrays, "labels")
    check_images(images)
    maps = {"teacher": take(arrays, "teacher"), **_prefixed(arrays, "student_")}
    distances = _prefixed(arrays, "rank_distance_")
    for key, array in maps.items():
        check_array(f"map {key}", array, (len(images), None, None))
    for key, array in {"labels": labels, **distances}.items():
        check_array(key, array, (len(images),))
    return AttributionMaps(images, labels, maps, distances)


def _prefixed(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(prefix): array
        for key, array in arrays.items()
        if key.startswith(prefix)
    }


def check_images(images: np.ndarray) -> None:
    """Requires images as a page shows them: uint8 [N, H, W, C].

    Raises:
        ReportError: they are of another type or shape.
    """
    check_array("images", images, (None, None, None, None))
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or not images.size:
        raise ReportError(
            "images must be uint8 [N, H, W, C] with C 1 or 3 and N 1 or more. "
            f"Received: dtype={images.dtype}, shape={images.shape}. {REMEDY}"
        )


def check_array(key: str, array: np.ndarray, shape: Iterable[int | None]) -> None:
    """Requires numbers of a shape; None is any size.

    Raises:
        ReportError: they are of another shape, or no numbers.
    """
    wanted = tuple(shape)
    fits = array.ndim == len(wanted) and all(
        want in (None, got) for want, got in zip(wanted, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        raise ReportError(
            f"{key} must be numbers of shape {wanted} (None: any). "
            f"Received: dtype={array.dtype}, shape={array.shape}. {REMEDY}"
        )


def read_npz(workdir: Path, name: str) -> dict[str, np.ndarray]:
    """Reads a file of plain arrays of any shape; unpacked its size is bounded.

    Raises:
        ReportError: the file is outside of the workdir, missing or damaged.
    """
    path = workdir / name
    if not _is_inside(path, workdir):
        raise ReportError(
            f"attribution must name a file in the workdir. Received: attribution="
            f"{name!r:.200}. {REMEDY}"
        )
    require(workdir, name)
    try:
        _check_unpacked_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: np.asarray(arrays[key]) for key in arrays.files}
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds of errors.
        raise ReportError(
            f"{name} must be an .npz of plain arrays. "
            f"Received: {str(error)[:200]}. {REMEDY}"
        ) from error


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, a name too long
        return False


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_ARRAY_BYTES:
        raise ValueError(f"{size} bytes unpacked, at most {MAX_ARRAY_BYTES} are read")
