"""Makes a data set of image files and the objects in them."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.data.decoding import decode_whole, height_width, resize
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import check_files
from gmpq_tf.data.objects import Objects, numbered, widened
from gmpq_tf.data.spec import TEST_FRACTION, Raw
from gmpq_tf.data.splits import TEST_SEED, FileSplit

# A function of a uint8 image, its objects, its position in the epoch and a size that
# returns an image of that size and the objects in it.
Vary = Callable[..., tuple[tf.Tensor, Any]]


@dataclasses.dataclass(frozen=True)
class ObjectDecoder:
    """Decodes images with objects to uint8 images of one size.

    The whole image is kept; where its ratio of sides differs, it is stretched. Boxes
    are relative to the image, so stretching does not change them.

    Args:
        size: height and width, in pixels; None: as stored.
        channels: 1 (grey) or 3 (RGB).
    """

    size: tuple[int, int] | None
    channels: int
    keeps_all = False

    def example(
        self,
        encoded: tf.Tensor,
        labels: Mapping[str, tf.Tensor],
        vary: Vary | None,
        position: tf.Tensor,
    ) -> tuple[tf.Tensor, Mapping[str, tf.Tensor]]:
        """Decodes one image.

        Args:
            encoded: scalar string.
            labels: its objects: "boxes" [M, 4], "classes" [M], "difficult" [M].
            vary: the augmentation of image and objects; None: no augmentation.
            position: position of the image in the epoch, int64 scalar.

        Returns:
            uint8 [height, width, channels], and the objects in it.
        """
        image = decode_whole(encoded, self.channels)
        if self.size is None:
            return image, labels
        if vary is not None:
            image, labels = vary(image, labels, position, self.size)
        else:
            image = resize(image, self.size)
        return tf.ensure_shape(image, [*self.size, self.channels]), labels


def object_decoder(
    size: int | tuple[int, int] | None, channels: int | None
) -> ObjectDecoder:
    """Returns the decoder of images with objects.

    Args:
        size: side, or height and width, of the images that the model reads.
        channels: 1 or 3; None: 3.

    Raises:
        DataError: the size is not known.
    """
    if size is None:
        raise DataError(
            "Images with objects need a common size, to which they are stretched. "
            "Received: image_size=None. Give the side the model reads, such as "
            "image_size=300, or (height, width)."
        )
    return ObjectDecoder(height_width(size), channels or 3)


def files_raw(
    parts: Mapping[str, Mapping[str, Objects]],
    class_names: Sequence[str],
    decode: ObjectDecoder,
) -> Raw:
    """Returns a data set of image files whose objects are known.

    Args:
        parts: split -> path of an image -> its objects; must have "train". Without
            "test", random 20 % of the training images become it.
        class_names: every class of the objects.
        decode: decoder of the images.

    Raises:
        DataError: no training image has an object, an image cannot be read, or an image
            is in two splits.
    """
    assert decode.size is not None
    check_shown(parts["train"])
    _check_apart(parts)
    check_files(tuple(path for images in parts.values() for path in images))
    labels = {name: numbered(part, class_names) for name, part in parts.items()}
    most = max(part["classes"].shape[1] for part in labels.values())
    _name_unseen(labels["train"]["classes"], class_names)
    splits = {
        name: FileSplit(tuple(parts[name]), widened(part, most), decode)
        for name, part in labels.items()
    }
    if "test" not in splits:
        count = round(TEST_FRACTION * splits["train"].size)
        splits["train"], splits["test"] = splits["train"].hold_out(count, TEST_SEED)
    return Raw(dict(splits), (*decode.size, decode.channels), tuple(class_names))


def check_shown(images: Mapping[str, Objects]) -> None:
    """Refuses training images without any object.

    Args:
        images: path -> objects.

    Raises:
        DataError: no image has an object.
    """
    if not any(each.names for each in images.values()):
        raise DataError(
            f"Training images must show an object. Received: {len(images)} images "
            f"without any, {next(iter(images))} the first. Draw boxes, or look whether "
            "these are the right annotations."
        )


def _name_unseen(classes: np.ndarray, class_names: Sequence[str]) -> None:
    """Warns of classes that no training image shows."""
    unseen = [n for i, n in enumerate(class_names) if not np.any(classes == i)]
    if unseen:
        warnings.warn(
            f"No training image shows an object of {', '.join(unseen[:5])}"
            f"{' and others' * (len(unseen) > 5)}: nothing is learned of "
            f"{len(unseen)} of {len(class_names)} classes, whose scores the model has "
            "all the same. Leave them out of the list of classes.",
            stacklevel=4,
        )


def _check_apart(parts: Mapping[str, Mapping[str, Objects]]) -> None:
    """Refuses images that are in two splits, so would be both trained and tested on."""
    seen: dict[str, str] = {}
    for split, images in parts.items():
        for image in images:
            if image in seen:
                raise DataError(
                    "An image must be in one split only. "
                    f"Received: {image} in {seen[image]!r} and {split!r}. Remove it "
                    "from one of the lists."
                )
            seen[image] = split


def samples(split: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yields the images of a split in their stored size, with their objects.

    Args:
        split: a split of a data set with boxes.

    Yields:
        "image" uint8 [H, W, C], "boxes" float32 [n, 4] as (ymin, xmin, ymax, xmax) in
        0 to 1, "labels" int32 [n] from 0, "difficult" bool [n].
    """
    stored = dataclasses.replace(split.decode, size=None)
    batches = dataclasses.replace(split, decode=stored).batches(1)
    for images, labels in batches.as_numpy_iterator():
        real = labels["classes"][0] >= 0
        yield {
            "image": images[0],
            "boxes": labels["boxes"][0][real],
            "labels": labels["classes"][0][real],
            "difficult": labels["difficult"][0][real],
        }
