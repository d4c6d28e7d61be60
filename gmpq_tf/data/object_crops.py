"""Cuts the objects out of images with boxes: a data set for classifiers."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.decoding import height_width, resize
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.object_files import samples
from gmpq_tf.data.spec import DatasetSpec, Raw
from gmpq_tf.data.splits import ArraySplit

SIDE = 64  # default side of the cut-out images, in pixels
LEAST_AREA = 32 * 32  # smaller boxes, in pixels of the stored image, are left out
MARGIN = 1.1  # side of the cut-out square over the longer side of the box
MOST_BYTES = 2**31  # largest size of all crops, which are kept in memory

Source = Callable[[DataConfig, DatasetSpec], Raw]


def crops_of(spec: DatasetSpec) -> DatasetSpec:
    """Returns the row of a data set of the objects in images, each with one class.

    Each object that is not difficult and covers more than 32 x 32 pixels is cut out: a
    square of 1.1 times the longer side of its box. It is moved to lie inside the image;
    where it is larger than the image, it is cut and stretched.

    Args:
        spec: row of the data set with boxes.

    Raises:
        DataError: the data set has classes instead of boxes.
    """
    if spec.holds != "boxes":
        raise DataError(
            "Objects can only be cut out of images whose data set has boxes. "
            f"Received: labels='crops' with dataset={spec.name!r}. Name a folder with "
            "VOC annotations, a COCO file or 'voc0712', or leave labels out."
        )

    def load(config: DataConfig, own: DatasetSpec) -> Raw:
        size = height_width(config.image_size or SIDE)
        plain = replace(config, labels=None, augment=None, image_size=SIDE)
        raw = spec.source(plain, spec)
        splits = {}
        for name, split in raw.splits.items():
            found = _cut(split, size)
            splits[name] = ArraySplit(*_stacked(found, size, raw.image_shape[2]))
        _check(splits, raw.class_names, config)
        return Raw(splits, (*size, raw.image_shape[2]), raw.class_names)

    size = None if spec.any_size else SIDE
    crops: dict[str, Any] = {"holds": "classes", "augment": "flip_crop"}
    return replace(spec, source=load, image_size=size, **crops)


def window(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Returns the part to cut out for a box: (top, left, rows, columns) in pixels.

    Args:
        box: [4] as (ymin, xmin, ymax, xmax), relative to the image.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    top, left, bottom, right = box * np.array([height, width, height, width])
    side = max(round(MARGIN * float(max(bottom - top, right - left))), 1)
    rows, columns = min(side, height), min(side, width)
    first = round(float(top + bottom - rows) / 2)
    start = round(float(left + right - columns) / 2)
    first = min(max(first, 0), height - rows)
    start = min(max(start, 0), width - columns)
    return first, start, rows, columns


def _cut(split: Any, size: tuple[int, int]) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (uint8 image, class) for each object that is cut out."""
    for sample in samples(split):
        image = sample["image"]
        height, width = image.shape[:2]
        for box, label, difficult in zip(
            sample["boxes"], sample["labels"], sample["difficult"], strict=True
        ):
            area = (box[2] - box[0]) * height * (box[3] - box[1]) * width
            if difficult or area <= LEAST_AREA:
                continue
            top, left, rows, columns = window(box, height, width)
            part = image[top : top + rows, left : left + columns]
            yield np.asarray(resize(part, size)), int(label)


def _stacked(
    found: Iterator[tuple[np.ndarray, int]], size: tuple[int, int], channels: int
) -> tuple[np.ndarray, np.ndarray]:
    images, labels, total = [], [], 0
    for image, label in found:
        images.append(image)
        labels.append(label)
        total += image.nbytes
        if total > MOST_BYTES:
            raise DataError(
                f"The objects of a split must take at most {MOST_BYTES / 2**30:.0f} GB "
                f"as images of one size. Received: more, of {size[0]} x {size[1]} "
                f"pixels each, after {len(images)} objects. Give a smaller image_size."
            )
    empty: np.ndarray = np.zeros((0, *size, channels), np.uint8)
    return np.stack(images) if images else empty, np.array(labels, np.int64)


def _check(
    splits: dict[str, ArraySplit], class_names: tuple[str, ...], config: DataConfig
) -> None:
    if not splits["train"].size:
        raise DataError(
            "Objects that are cut out must cover more than 32 x 32 pixels. Received: "
            f"dataset={config.dataset!r}, whose training images show no such object "
            "that is not difficult. Use larger images."
        )
    shown = {int(label) for label in splits["train"].labels}
    missing = [name for number, name in enumerate(class_names) if number not in shown]
    if missing:
        warnings.warn(
            f"No training image shows an object of {', '.join(missing[:5])} of more "
            "than 32 x 32 pixels: nothing is learned of that.",
            stacklevel=3,
        )
