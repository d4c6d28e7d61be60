"""Folders of images: one subfolder per class, with or without splits above them."""

import collections
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.decoding import MAX_PIXELS, ImageDecoder, height_width
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.spec import TEST_FRACTION, DatasetSpec, Raw
from gmpq_tf.data.splits import TEST_SEED, FileSplit, stratified_split
from gmpq_tf.spelling import suggest

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif"}
)
# Other files that often lie beside images, and are skipped silently as hidden files
# are.
_NO_IMAGES = frozenset(
    {".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".yaml", ".yml", ".ini", ".db"}
)
_GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "F"})  # of Pillow
# Formats that TensorFlow decodes, and the bytes with which a complete file ends (None:
# not fixed by the format).
_ENDINGS = {
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",  # A JPEG file of several pictures, as telephones make.
    "PNG": b"IEND\xaeB`\x82",
    "BMP": None,
    "GIF": None,
}
_ORIENTATION, _UPRIGHT = 0x0112, 1  # a tag of EXIF and its usual value
_READ_AS = ("JPEG", "PNG", "BMP", "GIF")  # MPO files are read as JPEG ones.


def load_folder(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads a folder of class folders, or one with `train`, `validation`, `test` above.

    Without a `train` folder 20 % of each class become the test split. Images are read
    as RGB; as grey if all are stored so, or if `config.channels` says so.

    Raises:
        DataError: The folder, its classes or a file in it cannot be used.
    """
    root = folder_root(config)
    if config.labels == "none" or config.targets is not None:
        return _load_unlabelled(root, config, spec)
    parts = _folder_parts(root)
    class_names = _class_names(parts["train"])
    files = {name: _labelled_files(part, class_names) for name, part in parts.items()}
    paths = [path for part, _ in files.values() for path in part]
    decode, stored = _decoder(config, spec, paths)
    splits = {name: FileSplit(*given, decode) for name, given in files.items()}
    _check_every_class(splits["train"], class_names, parts["train"])
    if "test" not in splits:
        splits["train"], splits["test"] = _stratified_files(splits["train"])
    return Raw(dict(splits), _shape(decode), class_names, stored)


def _load_unlabelled(root: Path, config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads all images below a folder without labels; 20 % become the test split."""
    paths, others = _files_below(root)
    if not paths:
        kinds = f", but {_counted(others)}: convert them" if others else ""
        raise DataError(
            f"A folder must hold {', '.join(sorted(IMAGE_SUFFIXES))} files. "
            f"Received: {root} with none, nor below it{kinds}. Name the folder of the "
            "images."
        )
    if others:
        warnings.warn(_left_out_message(root, others, len(paths)), stacklevel=2)
    decode, stored = _decoder(config, spec, paths)
    split = FileSplit(paths, np.zeros(len(paths), np.int64), decode)
    train, test = split.hold_out(round(TEST_FRACTION * split.size), TEST_SEED)
    return Raw({"train": train, "test": test}, _shape(decode), (), stored)


def has_classes(root: str | Path) -> bool:
    """Whether the images of a folder lie in sub-folders, and not beside them.

    Args:
        root: A folder that exists.
    """
    root = expanded(str(root))
    visible = (p for p in root.iterdir() if not p.name.startswith("."))
    flat = any(p.suffix.lower() in IMAGE_SUFFIXES for p in visible)
    return not flat and bool(_visible_folders(root))


def _decoder(
    config: DataConfig, spec: DatasetSpec, paths: Sequence[str]
) -> tuple[ImageDecoder, int]:
    """Returns the decoder of a folder's images, and the channels they are stored in."""
    size = config.image_size or spec.image_size
    if size is None:
        raise DataError(
            "Images of a folder need a common size. Received: image_size=None. "
            "Give the side the model reads, such as image_size=96, or (32, 24)."
        )
    modes = check_files(tuple(paths))
    stored = 1 if modes and modes <= _GREY_MODES else 3
    channels = config.channels or stored
    sides = height_width(size)
    return ImageDecoder(sides, channels, spec.crop_fraction, spec.banner), stored


def _shape(decode: ImageDecoder) -> tuple[int, int, int]:
    return (*height_width(decode.size), decode.channels)


def check_files(paths: tuple[str, ...], whole: bool = False) -> set[str]:
    """Refuses files that are not readable images.

    Args:
        paths: Image files.
        whole: Decode every pixel, rather than look at the beginning and the end.

    Returns:
        The modes of the images, as Pillow calls them: `"L"` is grey, `"RGB"` colour.
        Photographs that are stored turned are warned of.

    Raises:
        DataError: A file is not readable, or its image too large to decode; the message
            names the first.
    """
    modes, turned = set(), 0
    for path in paths:
        _check_name(path)
        header = _header(path, whole)
        if header is None:
            raise DataError(
                "Every image file must be a whole JPEG, PNG, BMP or GIF of at most "
                f"{MAX_PIXELS} pixels. Received: {path} (missing, empty, damaged, "
                "truncated, too large, a BMP with a palette, or not such an image). "
                "Replace, shrink or remove it."
            )
        modes.add(header[0])
        turned += header[1]
    if turned:
        warnings.warn(
            "Pixels are read as they are stored, as by TensorFlow and Keras. "
            f"Received: {turned} of {len(paths)} photographs that say they are to be "
            "turned (EXIF orientation). Turn them, e.g. by Pillow's "
            "ImageOps.exif_transpose, if the model was trained on upright images.",
            stacklevel=2,
        )
    return modes


def _check_name(path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            "The name of an image file must be UTF-8. "
            f"Received: {path!r}. Rename it, or the folder it is in."
        ) from error


def _header(path: str, whole: bool) -> tuple[str, bool] | None:
    """Pillow's mode of an image, and whether it is to be turned; None: unreadable."""
    if not Path(path).is_file():  # Reading a pipe would block.
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_READ_AS) as image:  # Reads the header only.
                ending, (width, height) = _ENDINGS[image.format or ""], image.size
                kind, mode = image.format, image.mode
                # Of other formats it would decode the pixels.
                exif = image.getexif() if kind in ("JPEG", "MPO") else {}
                turned = exif.get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
    except Exception:  # Pillow raises a dozen kinds of errors.
        return None
    # TensorFlow reads the indices of a palette instead of its colours.
    if width * height > MAX_PIXELS or (kind, mode) == ("BMP", "P"):
        return None
    good = (_ends_as_it_should(path, ending) and not whole) or _decodes(path)
    return (mode, turned) if good else None


def _decodes(path: str) -> bool:
    try:
        tf.io.decode_image(Path(path).read_bytes(), 3, expand_animations=False)
    except tf.errors.OpError:
        return False
    return True


def _ends_as_it_should(path: str, ending: bytes | None) -> bool:
    """Whether a file ends with its format's last bytes, so it is not truncated."""
    if ending is None:
        return False
    with Path(path).open("rb") as file:
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def files_by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Returns name without suffix -> file, of a folder that may be missing.

    Args:
        folder: where they lie; hidden ones are left out.
        suffixes: of the files, in lower case with the dot.

    Raises:
        DataError: two differ in their suffix alone, so that a name would mean either.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                "Names must be different without their suffix. "
                f"Received: {found[path.stem]} and {path.name}. Rename one."
            )
        found[path.stem] = path
    return found


def folder_root(config: DataConfig, name: str = "folder") -> Path:
    """Returns the folder that a configuration names.

    Args:
        config: The configuration.
        name: The row of `DATASETS` for which `data_dir` is the folder.

    Raises:
        DataError: There is no such folder.
    """
    named = config.data_dir if config.dataset == name else config.dataset
    root = expanded(named) if named else None
    if root is None or not _is_folder(root):
        raise DataError(
            "A folder data set needs a folder that exists. "
            f"Received: dataset={config.dataset!r}, data_dir={config.data_dir!r}. "
            f"Give dataset={name!r} with data_dir='<path>', or dataset='<path>'."
        )
    return root


def expanded(path: str) -> Path:
    """Returns a path with `~` expanded; unchanged where there is no such user."""
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
    """Returns split -> the folder that holds its class folders."""
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
            "Point to the folder whose subfolders are the classes, or, where none are "
            "needed, leave them unread with labels='none' (--labels=none)."
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
    paths, labels = list[str](), list[int]()
    others = collections.Counter[str]()
    for label, name in enumerate(class_names):
        files, left_out = _files_below(folder / name)
        others.update(left_out)
        paths.extend(files)
        labels.extend([label] * len(files))
    if others:
        warnings.warn(_left_out_message(folder, others, len(paths)), stacklevel=2)
    return tuple(paths), np.array(labels, np.int64)


def _files_below(folder: Path) -> tuple[tuple[str, ...], collections.Counter[str]]:
    """Image files below a folder, and numbers by suffix of others perhaps so meant.

    Hidden ones are neither: `._cat.jpg` of macOS is no image, and
    `.ipynb_checkpoints/cat-checkpoint.jpg` is the copy of one.
    """
    files, others = list[str](), collections.Counter[str]()
    for path in sorted(folder.rglob("*")):
        hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
        suffix = path.suffix.lower()
        if hidden:
            continue
        if suffix in IMAGE_SUFFIXES:
            files.append(str(path))
        elif suffix not in _NO_IMAGES and path.is_file():
            others[suffix] += 1
    return tuple(files), others


def _left_out_message(folder: Path, others: Mapping[str, int], read: int) -> str:
    return (
        f"Images are read from {', '.join(sorted(IMAGE_SUFFIXES))} files. "
        f"Received: other files in {folder}, which are left out: {_counted(others)}; "
        f"{read} images are read. Convert them, or remove them."
    )


def _counted(files: Mapping[str, int]) -> str:
    """Numbers of files by suffix, such as "3 of .webp, 1 of no suffix"."""
    return ", ".join(
        f"{number} of {suffix or 'no suffix'}" for suffix, number in files.items()
    )


def _check_every_class(
    train: FileSplit, class_names: tuple[str, ...], folder: Path
) -> None:
    missing = sorted(set(range(len(class_names))) - set(train.labels.tolist()))
    if missing:
        raise DataError(
            "Every class needs training images. Received: no "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} file in "
            f"{', '.join(str(folder / class_names[label]) for label in missing)}. "
            "Add images or remove the folder."
        )


def _stratified_files(split: FileSplit) -> tuple[FileSplit, FileSplit]:
    kept, held = stratified_split(split.labels, TEST_FRACTION)
    return split.take(kept), split.take(held)
