"""Folders of images: one subfolder a class, with or without splits above them."""

import os
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.decoding import ImageDecoder
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.spec import TEST_FRACTION, DatasetSpec, Raw
from gmpq_tf.data.splits import FileSplit, stratified_split
from gmpq_tf.names import suggest

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
# Formats that TensorFlow decodes, and how their files end where they do so always.
_ENDINGS = {
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",  # A JPEG file of several pictures, as telephones make.
    "PNG": b"IEND\xaeB`\x82",
    "BMP": None,
    "GIF": None,
}
_READ_AS = ("JPEG", "PNG", "BMP", "GIF")  # MPO files are read as JPEG ones.
# Decoded and resized in float32 an image of so many takes 0.8 GB.
MAX_PIXELS = 2**26


def load_folder(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Load class folders of images, or such under `train` and `validation` or `test`.

    Without a `train` folder 20 % of each class become the test split. Images are read
    as RGB.

    Raises:
        DataError: The folder, its classes or a file in it cannot be used.
    """
    root = _folder_root(config)
    parts = _folder_parts(root)
    class_names = _class_names(parts["train"])
    side = config.image_size or spec.image_size
    if side is None:
        raise DataError(
            "Images of a folder need a common size. Received: image_size=None. "
            "Give the side the model reads, such as image_size=96."
        )
    decode = ImageDecoder(side, 3, spec.crop_fraction, spec.banner)
    splits = {
        name: FileSplit(*_labelled_files(part, class_names), decode)
        for name, part in parts.items()
    }
    _check_every_class(splits["train"], class_names, parts["train"])
    if "test" not in splits:
        splits["train"], splits["test"] = _stratified_files(splits["train"])
    return Raw(dict(splits), (side, side, 3), class_names)


def check_files(paths: tuple[str, ...], whole: bool = False) -> None:
    """Refuse files that are not readable images.

    Args:
        paths: Image files.
        whole: Decode every pixel, rather than look at the beginning and the end.

    Raises:
        DataError: A file is not readable, or its image too large to decode; the first
            is named.
    """
    for path in paths:
        _check_name(path)
        if not _is_readable(path, whole):
            raise DataError(
                "Every image file must be a whole JPEG, PNG, BMP or GIF of at most "
                f"{MAX_PIXELS} pixels. Received: {path} (missing, empty, damaged, "
                "truncated, too large or not such an image). Replace, shrink or "
                "remove it."
            )


def _check_name(path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            "The name of an image file must be UTF-8. "
            f"Received: {path!r}. Rename it, or the folder it is in."
        ) from error


def _is_readable(path: str, whole: bool) -> bool:
    if not Path(path).is_file():  # A pipe would be waited for.
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_READ_AS) as image:  # Reads the header only.
                ending, (width, height) = _ENDINGS[image.format or ""], image.size
    except Exception:  # Pillow raises a dozen kinds.
        return False
    if width * height > MAX_PIXELS:
        return False
    return (_ends_as_it_should(path, ending) and not whole) or _decodes(path)


def _decodes(path: str) -> bool:
    try:
        tf.io.decode_image(Path(path).read_bytes(), 3, expand_animations=False)
    except tf.errors.OpError:
        return False
    return True


def _ends_as_it_should(path: str, ending: bytes | None) -> bool:
    """Whether a file surely is not cut off, to be told without decoding it."""
    if ending is None:
        return False
    with Path(path).open("rb") as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def _folder_root(config: DataConfig) -> Path:
    named = config.data_dir if config.dataset == "folder" else config.dataset
    root = _expanded(named) if named else None
    if root is None or not _is_folder(root):
        raise DataError(
            "A folder data set needs a folder that exists. "
            f"Received: dataset={config.dataset!r}, data_dir={config.data_dir!r}. "
            "Give dataset='folder' with data_dir='<path>', or dataset='<path>'."
        )
    return root


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # There is no such user.
        return Path(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # Such as a name too long.
        return False


def _folder_parts(root: Path) -> dict[str, Path]:
    """Return the folders that hold class folders, by split."""
    if not (root / "train").is_dir():
        return {"train": root}
    names = {"validation": ("validation", "val"), "test": ("test",)}
    parts = {"train": root / "train"}
    for split, spellings in names.items():
        found = [root / name for name in spellings if (root / name).is_dir()]
        parts.update({split: found[0]} if found else {})
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in _visible_folders(folder)))
    if len(names) < 2:
        raise DataError(
            "A folder data set needs one subfolder a class, two classes at least. "
            f"Received: {folder} with {len(names)} ({', '.join(names) or 'none'}). "
            "Point to the folder whose subfolders are the classes."
        )
    return names


def _visible_folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _labelled_files(
    folder: Path, class_names: tuple[str, ...]
) -> tuple[tuple[str, ...], np.ndarray]:
    for extra in sorted({p.name for p in _visible_folders(folder)} - set(class_names)):
        raise DataError(
            "Every class needs training images. "
            f"Received: {folder / extra}, which is no class of the training split. "
            f"{suggest(extra, class_names)} Rename or remove it."
        )
    paths, labels = [], []
    for label, name in enumerate(class_names):
        files = sorted(
            str(path)
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in _IMAGE_SUFFIXES
        )
        paths.extend(files)
        labels.extend([label] * len(files))
    check_files(tuple(paths))
    return tuple(paths), np.array(labels, np.int64)


def _check_every_class(
    train: FileSplit, class_names: tuple[str, ...], folder: Path
) -> None:
    missing = sorted(set(range(len(class_names))) - set(train.labels.tolist()))
    if missing:
        raise DataError(
            "Every class needs training images. Received: no "
            f"{', '.join(sorted(_IMAGE_SUFFIXES))} file in "
            f"{', '.join(str(folder / class_names[label]) for label in missing)}. "
            "Add images or remove the folder."
        )


def _stratified_files(split: FileSplit) -> tuple[FileSplit, FileSplit]:
    kept, held = stratified_split(split.labels, TEST_FRACTION)
    return split.take(kept), split.take(held)
