"""Objects in images: boxes and classes, read and checked."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gmpq_tf.data.decoding import MAX_PIXELS
from gmpq_tf.data.errors import DataError

MAX_OBJECTS = 1_000  # per image; all images are padded to the fullest one of a set
PADDING = -1  # the class of rows that hold no object
# Corners outside the image by up to this many pixels, because of rounding in another
# program, are moved to the edge.
SLACK = 0.01


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Args:
        boxes: float32 [n, 4] as (ymin, xmin, ymax, xmax), relative to height and width,
            0 to 1.
        names: class name of each.
        difficult: whether an evaluation ignores each.
    """

    boxes: np.ndarray
    names: tuple[str, ...]
    difficult: tuple[bool, ...]


def read_size(path: Path, where: str) -> tuple[int, int]:
    """Reads (height, width) in pixels from the header of an image file.

    Args:
        path: the image file.
        where: the annotation that names it, for the error.

    Raises:
        DataError: it cannot be read, or the image is too large.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises a dozen kinds of errors.
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


def check_size(where: str, said: tuple[float, float], real: tuple[int, int]) -> None:
    """Refuses boxes that were drawn on an image of another size.

    Args:
        where: the annotation, for the error.
        said: height and width in the annotation, in pixels; 0 if not given there.
        real: height and width of the image file, in pixels.

    Raises:
        DataError: the sizes differ.
    """
    if 0 not in said and said != real:
        raise DataError(
            "Boxes must be of the image as it is stored. Received: "
            f"{where}, which is of {said[1]:g} x {said[0]:g} pixels (width x height), "
            f"for an image of {real[1]} x {real[0]}. Resize or turn the boxes as the "
            "image was, or take the original image."
        )


def relative_boxes(
    where: str, corners: Sequence[Sequence[float]], height: int, width: int
) -> np.ndarray:
    """Converts boxes from pixels to coordinates relative to the image.

    Args:
        where: the file that holds them, for the error.
        corners: (ymin, xmin, ymax, xmax) of each box, in pixels; 0 is the upper or left
            edge of the image.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        float32 [n, 4] as (ymin, xmin, ymax, xmax), 0 to 1.

    Raises:
        DataError: a box is empty, has corners in the wrong order or lies outside the
            image; or there are too many boxes.
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
    """Returns the objects of all images as arrays, padded to the same number.

    Args:
        objects: objects of each image, by the file that holds them.
        class_names: all classes, in the order of their numbers.

    Returns:
        "boxes" float32 [images, M, 4], "classes" int32 [images, M] with -1 for padding,
        "difficult" bool [images, M]; M is the largest number of objects in an image.
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
    """Returns labels of which all rows are padding: "classes" has the given shape."""
    return {
        "boxes": np.zeros((*shape, 4), np.float32),
        "classes": np.full(shape, PADDING, np.int32),
        "difficult": np.zeros(shape, bool),
    }


def widened(labels: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """Returns the same labels with more padding.

    Args:
        labels: from `numbered`, [images, M, ...].
        most: M of the result, at least the M of `labels`.

    Returns:
        Arrays [images, most, ...].
    """
    count, own = labels["classes"].shape
    wider = empty_labels((count, most))
    for name, array in labels.items():
        wider[name][:, :own] = array
    return wider
