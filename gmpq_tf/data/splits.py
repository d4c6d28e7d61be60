"""The images of one split, in memory or in files (for TFDS sets see stream.py)."""

import dataclasses
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from gmpq_tf.data.crops import cut
from gmpq_tf.data.decoding import Crop, resize
from gmpq_tf.data.errors import DataError

TEST_SEED = 0  # The test images of a set never depend on a run's seed.


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that one of several workers prepares.

    Args:
        index: 0 to `count` - 1.
        count: Number of equal, consecutive parts; it divides the batch size.
    """

    index: int = 0
    count: int = 1

    def bounds(self, batch_size: Any) -> tuple[Any, Any]:
        """Returns first and last position (exclusive) of the part in a batch."""
        part = batch_size // self.count
        return self.index * part, (self.index + 1) * part

    def holds(self, position: tf.Tensor, batch_size: int, size: int) -> tf.Tensor:
        """Whether positions in an epoch belong to this share.

        A last, smaller batch belongs to no share, unless the share is the whole batch.

        Args:
            position: Positions in the epoch, int64 of any shape.
            batch_size: Images of a whole batch, over all shares.
            size: Images of the epoch.

        Returns:
            bool of the shape of `position`.
        """
        if self.count == 1:
            return tf.ones_like(position, tf.bool)
        first, last = self.bounds(batch_size)
        place = position % batch_size
        full = size // batch_size * batch_size
        return (place >= first) & (place < last) & (position < full)


WHOLE = Share()


class Split(Protocol):
    """Images and labels of one split."""

    @property
    def size(self) -> int:
        """Number of images."""

    @property
    def keeps_all(self) -> bool:
        """Whether batches without a crop hold the stored images, pixel for pixel."""

    def batches(
        self,
        batch_size: int,
        seed: Any,
        drop_remainder: bool,
        crop: Crop | None = None,
        share: Share = WHOLE,
    ) -> Any:
        """Returns a `tf.data.Dataset` of (uint8 NHWC images, int64 labels).

        Splits of tensors give float32 inputs of any shape, and targets or a dict of
        them. For images with objects the labels are a dict of "boxes", "classes" and
        "difficult", and `crop` varies image and objects (`object_files.ObjectDecoder`).

        Args:
            batch_size: Images in a batch.
            seed: Two integers that decide the order, or None for the stored order.
            drop_remainder: Whether a last, smaller batch is left out.
            crop: The part of each image that is read; None for the same part always.
            share: The part of each full batch that is returned.
        """

    def hold_out(self, count: int, seed: int) -> tuple["Split", "Split"]:
        """Returns this split without `count` images, and those images.

        Args:
            count: 0 to `size`.
            seed: Decides which images; how they are stored or decoded does not.
        """


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Decoded images in memory.

    Args:
        images: uint8 `[size, height, width, channels]`; for tensors float32
            `[size, ...]`.
        labels: int64 `[size]`; for tensors the targets, or a dict of them.
    """

    images: np.ndarray
    labels: Any

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def keeps_all(self) -> bool:
        """True: images in memory are never cropped or resized here."""
        return True

    def batches(
        self,
        batch_size: int,
        seed: Any = None,
        drop_remainder: bool = False,
        crop: Crop | None = None,
        share: Share = WHOLE,
    ) -> tf.data.Dataset:
        """Returns batches of (uint8 images, int64 labels); see `Split.batches`."""
        images, labels = self._tensors
        places = _places(self.size, batch_size, seed, share)
        part = batch_size // share.count
        if crop is None:
            return places.batch(part, drop_remainder).map(
                lambda _, i: (
                    tf.gather(images, i),
                    tf.nest.map_structure(lambda values: tf.gather(values, i), labels),
                )
            )
        shape, size = tf.shape(images)[1:3], self.images.shape[1:3]

        def read(position: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            part = cut(images[index], crop(shape, position))
            return resize(part, size), labels[index]

        parts = places.map(read, tf.data.AUTOTUNE)
        return parts.batch(part, drop_remainder)

    def hold_out(self, count: int, seed: int) -> tuple["ArraySplit", "ArraySplit"]:
        """Returns this split without `count` random images, and those images."""
        kept, held = random_parts(self.size, count, seed)
        return self._take(kept), self._take(held)

    def _take(self, indices: np.ndarray) -> "ArraySplit":
        labels = tf.nest.map_structure(lambda values: values[indices], self.labels)
        return ArraySplit(self.images[indices], labels)

    @property
    def _tensors(self) -> tuple[tf.Tensor, Any]:
        # Made outside the graph of a tf.data function, which would copy them into it.
        with tf.init_scope(), tf.device("CPU"):
            labels = tf.nest.map_structure(tf.constant, self.labels)
            return tf.constant(self.images), labels


@dataclasses.dataclass(frozen=True)
class FileSplit:
    """Image files, decoded as they are needed.

    Args:
        paths: File paths.
        labels: int64 `[size]`, or a dict of arrays `[size, ...]`.
        decode: Turns file content and label into uint8 image and label: an
            `ImageDecoder` or an `ObjectDecoder`.
    """

    paths: tuple[str, ...]
    labels: Any
    decode: Any

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.paths)

    @property
    def keeps_all(self) -> bool:
        """Whether decoding keeps every pixel."""
        return self.decode.keeps_all

    def batches(
        self,
        batch_size: int,
        seed: Any = None,
        drop_remainder: bool = False,
        crop: Crop | None = None,
        share: Share = WHOLE,
    ) -> tf.data.Dataset:
        """Returns batches of (uint8 images, int64 labels); see `Split.batches`."""
        with tf.init_scope(), tf.device("CPU"):
            paths = tf.constant(self.paths, tf.string)
            labels = tf.nest.map_structure(tf.constant, self.labels)

        def read(position: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, Any]:
            encoded = tf.io.read_file(paths[index])
            label = tf.nest.map_structure(lambda values: values[index], labels)
            return self.decode.example(encoded, label, crop, position)

        places = _places(self.size, batch_size, seed, share)
        images = places.map(read, tf.data.AUTOTUNE)
        return images.batch(batch_size // share.count, drop_remainder)

    def hold_out(self, count: int, seed: int) -> tuple["FileSplit", "FileSplit"]:
        """Returns this split without `count` random files, and those files."""
        kept, held = random_parts(self.size, count, seed)
        return self.take(kept), self.take(held)

    def take(self, indices: np.ndarray) -> "FileSplit":
        """Returns the files at `indices`, int64 [n], in that order."""
        paths = tuple(self.paths[index] for index in indices)
        labels = tf.nest.map_structure(lambda values: values[indices], self.labels)
        return FileSplit(paths, labels, self.decode)


def read_into_memory(split: Split, shape: tuple[int, ...]) -> ArraySplit:
    """Decodes every image of a split.

    Args:
        split: Any split.
        shape: Shape of its images.

    Returns:
        The split in memory, in stored order.

    Raises:
        DataError: An image cannot be decoded.
    """
    images: np.ndarray = np.empty((split.size, *shape), np.uint8)
    labels: np.ndarray = np.empty(split.size, np.int64)
    first = 0
    try:
        for batch in split.batches(256, None, False).prefetch(2).as_numpy_iterator():
            last = first + len(batch[1])
            images[first:last], labels[first:last] = batch
            first = last
    except tf.errors.OpError as error:
        raise DataError(
            f"Every image must be decodable. Received: one after image {first} that is "
            f"not ({str(error.message)[:200]}). Repair or remove it."
        ) from error
    return ArraySplit(images, labels)


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int = TEST_SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Splits indices so that each class is held out in the same proportion.

    Args:
        labels: int `[size]`.
        fraction: Share of each class to hold out, 0 to 1.
        seed: Decides which.

    Returns:
        Sorted indices, int64 [size - count] of the images kept and [count] of those
        held out.
    """
    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held.extend(members[: round(fraction * len(members))])
    chosen: np.ndarray = np.zeros(len(labels), bool)
    chosen[np.array(held, int)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _places(size: int, batch_size: int, seed: Any, share: Share) -> tf.data.Dataset:
    """Yields position in the epoch and index in the split of each image of a share."""
    everything = tf.range(size, dtype=tf.int64)
    positions = everything[share.holds(everything, batch_size, size)]
    indices = tf.gather(order_of(size, seed), positions)
    return tf.data.Dataset.from_tensor_slices((positions, indices))


def order_of(size: Any, seed: Any) -> tf.Tensor:
    """Returns the order of an epoch; the same seed gives it on every machine.

    Args:
        size: Number of images.
        seed: Two integers, or None for the stored order.

    Returns:
        int64 [size], a permutation of 0 to `size` - 1.
    """
    indices = tf.range(tf.cast(size, tf.int64))
    if seed is None:
        return indices
    return tf.random.experimental.stateless_shuffle(indices, seed)


def random_parts(size: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits 0 to `size` - 1 at random.

    Args:
        size: Number of images.
        count: Images to hold out, 0 to `size`.
        seed: Decides which.

    Returns:
        Sorted indices, int64 [size - count] of the images kept and [count] of those
        held out.
    """
    indices = np.random.default_rng(seed).permutation(size)
    return np.sort(indices[count:]), np.sort(indices[:count])
