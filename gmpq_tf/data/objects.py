"""Objects in images: their boxes and classes, checked."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gmpq_tf.data.decoding import MAX_PIXELS
from gmpq_tf.data.errors import DataError

MAX_OBJECTS = 1_000  # in an image; the arrays of a set have a row for the most
PADDING = -1  # the class of rows that hold no object
# Corners that floats of another program put so far outside, in pixels, lie on the edge.
SLACK = 0.01


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Args:
        boxes: float32 [n, 4] as (ymin, xmin, ymax, xmax), shares of height and width.
        names: the class of each.
        difficult: whether each counts for nothing in an evaluation.
    """

    boxes: np.ndarray
    names: tuple[str, ...]
    difficult: tuple[bool, ...]


def read_size(path: Path, where: str) -> tuple[int, int]:
    """Height and width that an image file says it has.

    Args:
        path: of the image.
        where: what names it, for the error.

    Raises:
        DataError: it cannot be read, or is larger than images may be.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises a dozen kinds.
        raise DataError(
            "Every image with objects must be readable. "
            f"Received: {where}, whose image {path} is not ({str(error)[:100]}). "
            "Replace the image, or remove what names it."
        ) from error
    if width * height > MAX_PIXELS:
        raise DataError(
            f"An image must have at most {MAX_PIXELS} pixels. "
            f"Received: {path} with {width} x {height}. Shrink it."
        )
    return height, width


def check_size(where: str, said: tuple[int, int], real: tuple[int, int]) -> None:
    """Refuses boxes of an image that has another size than when they were drawn.

    Args:
        where: the file that says so.
        said: height and width; 0 where it does not know.
        real: those of the image.

    Raises:
        DataError: they differ.
    """
    if 0 not in said and said != real:
        raise DataError(
            "Boxes must be of the image as it is stored. Received: "
            f"{where}, which is of {said[1]} x {said[0]} pixels (width x height), for "
            f"an image of {real[1]} x {real[0]}. Resize or turn the boxes as the "
            "image was, or take the original image."
        )


def relative_boxes(
    where: str, corners: Sequence[Sequence[float]], height: int, width: int
) -> np.ndarray:
    """Boxes as shares of an image, which they must lie in.

    Args:
        where: the file that holds them, for the error.
        corners: (ymin, xmin, ymax, xmax) of each, pixels from 0, edges of pixels.
        height: of the image.
        width: likewise.

    Returns:
        float32 [n, 4] as (ymin, xmin, ymax, xmax), 0 to 1.

    Raises:
        DataError: a box is empty or turned over, or lies outside; or there are too
            many.
    """
    if len(corners) > MAX_OBJECTS:
        raise DataError(
            f"An image must have at most {MAX_OBJECTS} objects. "
            f"Received: {where} with {len(corners)}. Cut the image into smaller ones."
        )
    for number, (top, left, bottom, right) in enumerate(corners):
        shown = f"{where}, object {number + 1}: rows {top:g} to {bottom:g}, columns "
        shown += f"{left:g} to {right:g} of {height} x {width}"
        if not all(map(math.isfinite, (top, left, bottom, right))):
            raise DataError(
                f"Corners must be finite numbers. Received: {shown}. Draw it again."
            )
        if not (bottom > top and right > left):
            raise DataError(
                "A box must end after it begins. "
                f"Received: {shown} (empty, or its corners are swapped). Draw it "
                "again, or remove the object."
            )
        inside = top >= -SLACK and left >= -SLACK
        if not (inside and bottom <= height + SLACK and right <= width + SLACK):
            raise DataError(
                f"A box must lie inside its image. Received: {shown}. Move its corners "
                "to the edge, or look whether the boxes are of another image."
            )
    boxes: np.ndarray = np.array(corners, np.float64).reshape(-1, 4)
    sides = np.array([height, width, height, width])
    return np.clip(boxes / sides, 0.0, 1.0).astype(np.float32)


def numbered(
    objects: Mapping[str, Objects], class_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Arrays of the objects of images, padded to the same number.

    Args:
        objects: of each image, by the file that says them.
        class_names: in the order of their numbers.

    Returns:
        "boxes" float32 [images, M, 4], "classes" int32 [images, M] with -1 for padding,
        "difficult" bool [images, M]; M is the most objects of an image.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    most = max((len(each.names) for each in objects.values()), default=0)
    shape = (len(objects), most)
    labels = empty_labels(shape)
    for row, each in enumerate(objects.values()):
        count = len(each.names)
        labels["boxes"][row, :count] = each.boxes
        labels["classes"][row, :count] = [numbers[name] for name in each.names]
        labels["difficult"][row, :count] = each.difficult
    return labels


def empty_labels(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Labels without an object, of a shape [..., M]."""
    return {
        "boxes": np.zeros((*shape, 4), np.float32),
        "classes": np.full(shape, PADDING, np.int32),
        "difficult": np.zeros(shape, bool),
    }


def widened(labels: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """The same labels with more padding.

    Args:
        labels: as of `numbered`, [images, M, ...].
        most: M of the result, at least that of the labels.

    Returns:
        Likewise, [images, most, ...].
    """
    count, own = labels["classes"].shape
    wider = empty_labels((count, most))
    for name, array in labels.items():
        wider[name][:, :own] = array
    return wider
