"""Images with one mask each, which holds the class of every pixel."""

from pathlib import Path

import numpy as np
from PIL import Image

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.decoding import MAX_PIXELS
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import (
    IMAGE_SUFFIXES,
    check_files,
    files_by_stem,
    folder_root,
)
from gmpq_tf.data.object_files import object_decoder
from gmpq_tf.data.spec import TEST_FRACTION, DatasetSpec, Raw
from gmpq_tf.data.splits import TEST_SEED, FileSplit
from gmpq_tf.data.tensor_files import target_of
from gmpq_tf.task.targets import ALONE

IMAGES, MASKS = "images", "masks"
_SPLITS = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
_MODES = ("1", "L", "P", "I", "I;16")  # Pillow's modes with one number per pixel
_FORMATS = ("PNG", "BMP", "GIF", "TIFF")  # lossless; JPEG would change classes
_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
MEMORY_LIMIT = 2 * 10**9  # bytes of masks


def load_masks(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads folders `images` and `masks`, or such under train, validation and test.

    A mask has the same name as its image, and a whole number for each pixel: its class,
    or the index of a colour in a palette. Where all masks hold only 0 and 255, 255 is
    read as 1. Images and masks are stretched to one size, masks by nearest neighbour.
    Without a test split, random 20 % become it.

    Raises:
        DataError: The folder, an image or a mask cannot be used; the message names it.
    """
    root = folder_root(config, "masks")
    decode = object_decoder(config.image_size or spec.image_size, config.channels)
    assert decode.size is not None
    parts = {name: _paired(folder) for name, folder in _parts(root).items()}
    count = sum(map(len, parts.values()))
    if count * decode.size[0] * decode.size[1] > MEMORY_LIMIT:
        raise DataError(
            f"Masks are kept in memory, {MEMORY_LIMIT / 1e9:g} GB at most. "
            f"Received: {count} of {decode.size} pixels in {root}. Give a smaller "
            "image_size, or fewer images."
        )
    check_files(tuple(str(image) for pairs in parts.values() for image in pairs))
    masks = {
        name: np.stack([_read(path, image, decode.size) for image, path in p.items()])
        for name, p in parts.items()
    }
    if set(np.unique([v for m in masks.values() for v in np.unique(m)])) == {0, 255}:
        masks = {name: each // 255 for name, each in masks.items()}
    splits = {
        name: FileSplit(tuple(map(str, pairs)), masks[name].astype(np.int32), decode)
        for name, pairs in parts.items()
    }
    targets = {ALONE: target_of(list(masks.values()))}
    if "test" not in splits:
        held = round(TEST_FRACTION * splits["train"].size)
        splits["train"], splits["test"] = splits["train"].hold_out(held, TEST_SEED)
    return Raw(dict(splits), (*decode.size, decode.channels), (), targets=targets)


def is_masks(root: Path) -> bool:
    """Whether a folder holds images and masks as `load_masks` reads them."""
    return (_parts(root)["train"] / MASKS).is_dir() and (
        _parts(root)["train"] / IMAGES
    ).is_dir()


def _parts(root: Path) -> dict[str, Path]:
    """Returns split -> the folder that holds its images and masks."""
    found = {
        split: next((root / n for n in names if (root / n / MASKS).is_dir()), None)
        for split, names in _SPLITS.items()
    }
    if found["train"] is None:
        return {"train": root}
    parts = {split: path for split, path in found.items() if path is not None}
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def _paired(folder: Path) -> dict[Path, Path]:
    """Returns image -> mask, in the order of their names."""
    images = files_by_stem(folder / IMAGES, IMAGE_SUFFIXES)
    masks = files_by_stem(folder / MASKS, _SUFFIXES)
    for name in sorted(set(images) ^ set(masks)):
        path, place, kinds = masks.get(name), IMAGES, sorted(IMAGE_SUFFIXES)
        if name in images:
            path, place, kinds = images[name], MASKS, list(_SUFFIXES)
        raise DataError(
            "Every image needs a mask of its name, and every mask its image. "
            f"Received: {path}, but nothing of that name in {folder / place} "
            f"({', '.join(kinds)}). Add it, or remove the other."
        )
    if not images:
        raise DataError(
            f"A folder must hold images. Received: {folder / IMAGES} with none. Name "
            "the folder above 'images' and 'masks'."
        )
    return {images[name]: masks[name] for name in sorted(images)}


def _read(path: Path, image: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads a mask and stretches it to a size: int64 [height, width]."""
    try:
        with Image.open(path, formats=_FORMATS) as mask:
            if mask.mode not in _MODES:
                raise DataError(
                    "A mask must hold one number a pixel. "
                    f"Received: {path} of mode {mask.mode!r}, which is colours. Save "
                    "the number of each class, as grey or with a palette."
                )
            if mask.width * mask.height > MAX_PIXELS:
                raise ValueError(f"{mask.width} x {mask.height} pixels")
            with Image.open(image) as shown:
                if shown.size != mask.size:
                    raise DataError(
                        "A mask must have the size of its image. Received: "
                        f"{path} of {mask.size}, {image} of {shown.size}. Make them "
                        "alike."
                    )
            small = mask.resize((size[1], size[0]), Image.Resampling.NEAREST)
            return np.asarray(small).astype(np.int64)
    except DataError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds.
        raise DataError(
            f"Every mask must be a readable {', '.join(_FORMATS)} file. "
            f"Received: {path} ({str(error)[:100]}). Write it again."
        ) from error
