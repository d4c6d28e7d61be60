"""The images of one split, wherever they lie: in memory, in files, in TFDS shards."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from gmpq_tf.data.errors import DataError

Decode = Callable[[tf.Tensor], tf.Tensor]
SHUFFLE_WINDOW = (
    10_000  # Encoded images of a TFDS split; TFDS shuffled all as it wrote.
)


class Split(Protocol):
    """Images and labels of one split."""

    @property
    def size(self) -> int:
        """Number of images."""

    def batches(self, batch_size: int, seed: Any, drop_remainder: bool) -> Any:
        """Return a `tf.data.Dataset` of (uint8 NHWC images, int64 labels).

        Args:
            batch_size: Images in a batch.
            seed: Two integers that decide the order, or None for the stored order.
            drop_remainder: Whether a last, smaller batch is left out.
        """

    def hold_out(self, count: int, seed: int) -> tuple["Split", "Split"]:
        """Return this split without `count` images, and those images.

        Args:
            count: 0 to `size`.
            seed: Decides which images.
        """


@dataclasses.dataclass(frozen=True)
class ArraySplit:
    """Decoded images in memory.

    Args:
        images: uint8 `[size, height, width, channels]`.
        labels: int64 `[size]`.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.labels)

    def batches(
        self, batch_size: int, seed: Any = None, drop_remainder: bool = False
    ) -> tf.data.Dataset:
        """Return batches of (uint8 images, int64 labels); see `Split.batches`."""
        images, labels = self._tensors
        order = _order(self.size, seed)
        indices = tf.data.Dataset.from_tensor_slices(order)
        return indices.batch(batch_size, drop_remainder).map(
            lambda i: (tf.gather(images, i), tf.gather(labels, i))
        )

    def hold_out(self, count: int, seed: int) -> tuple["ArraySplit", "ArraySplit"]:
        """Return this split without `count` random images, and those images."""
        kept, held = _held_out(self.size, count, seed)
        return (
            ArraySplit(self.images[kept], self.labels[kept]),
            ArraySplit(self.images[held], self.labels[held]),
        )

    @property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        # Made outside the graph of a tf.data function, which would copy them into it.
        with tf.init_scope(), tf.device("CPU"):
            return tf.constant(self.images), tf.constant(self.labels)


@dataclasses.dataclass(frozen=True)
class FileSplit:
    """Image files, decoded as they are needed.

    Args:
        paths: File paths.
        labels: int64 `[size]`.
        decode: File content to uint8 image; every image has the same shape.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    decode: Decode

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.paths)

    def batches(
        self, batch_size: int, seed: Any = None, drop_remainder: bool = False
    ) -> tf.data.Dataset:
        """Return batches of (uint8 images, int64 labels); see `Split.batches`."""
        with tf.init_scope(), tf.device("CPU"):
            paths = tf.constant(self.paths, tf.string)
            labels = tf.constant(self.labels)

        def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self.decode(tf.io.read_file(paths[index])), labels[index]

        indices = tf.data.Dataset.from_tensor_slices(_order(self.size, seed))
        return indices.map(read, tf.data.AUTOTUNE).batch(batch_size, drop_remainder)

    def hold_out(self, count: int, seed: int) -> tuple["FileSplit", "FileSplit"]:
        """Return this split without `count` random files, and those files."""
        kept, held = _held_out(self.size, count, seed)
        return self.take(kept), self.take(held)

    def take(self, indices: np.ndarray) -> "FileSplit":
        """Return the files at `indices`."""
        paths = tuple(self.paths[index] for index in indices)
        return FileSplit(paths, self.labels[indices], self.decode)


@dataclasses.dataclass(frozen=True)
class StreamSplit:
    """Part of a TFDS split, read from its shards.

    Shuffling happens within windows of 10,000 images, which begin elsewhere each epoch.

    Args:
        builder: The TFDS builder.
        ranges: Examples `[first, last)` of the TFDS split.
        name: The TFDS split.
        decode: Encoded image to uint8 image; every image has the same shape.
    """

    builder: Any
    name: str
    ranges: tuple[tuple[int, int], ...]
    decode: Decode

    @property
    def size(self) -> int:
        """Number of images."""
        return sum(last - first for first, last in self.ranges)

    def batches(
        self, batch_size: int, seed: Any = None, drop_remainder: bool = False
    ) -> tf.data.Dataset:
        """Return batches of (uint8 images, int64 labels); see `Split.batches`."""
        examples = self._encoded()
        if seed is not None:
            examples = _shuffled(examples, SHUFFLE_WINDOW, seed)
        return examples.map(
            lambda image, label: (self.decode(image), tf.cast(label, tf.int64)),
            tf.data.AUTOTUNE,
        ).batch(batch_size, drop_remainder)

    def hold_out(self, count: int, seed: int) -> tuple["StreamSplit", "StreamSplit"]:
        """Return this split without a run of `count` examples, and that run."""
        ((first, last),) = self.ranges
        start = first + int(np.random.default_rng(seed).integers(self.size - count + 1))
        kept = ((first, start), (start + count, last))
        return (
            dataclasses.replace(self, ranges=tuple(r for r in kept if r[0] < r[1])),
            dataclasses.replace(self, ranges=((start, start + count),)),
        )

    def _encoded(self) -> tf.data.Dataset:
        import tensorflow_datasets as tfds

        with tf.init_scope():
            examples = self.builder.as_dataset(
                split="+".join(f"{self.name}[{a}:{b}]" for a, b in self.ranges),
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding(
                    {"image": True, "label": True},
                    decoders={"image": tfds.decode.SkipDecoding()},
                ),
            )
            return examples.map(lambda example: (example["image"], example["label"]))


def read_into_memory(split: Split, shape: tuple[int, int, int]) -> ArraySplit:
    """Decode every image of a split.

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


def square_decoder(
    side: int | None, channels: int, crop_fraction: float = 1.0
) -> Decode:
    """Return the function from an encoded image to a square uint8 image.

    Args:
        side: Side of the result, in pixels; None keeps images as stored.
        channels: 1 (grey) or 3 (RGB).
        crop_fraction: Side of the centre square that is kept, as a share of the
            image's shorter side, above 0 and at most 1.

    Returns:
        A function of a string tensor (JPEG, PNG or BMP).
    """

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(encoded, channels, expand_animations=False)
        if side is None:
            return image
        return resize(_center_square(image, crop_fraction), side)

    return decode


def resize(images: tf.Tensor, side: int) -> tf.Tensor:
    """Resize uint8 images to a square, bilinear and anti-aliased, if they are not.

    Args:
        images: uint8 `[height, width, channels]`, with or without a batch before.
        side: Side of the result, in pixels.

    Returns:
        uint8 images of side `side`.
    """
    if images.shape[-3] == images.shape[-2] == side:
        return images
    resized = tf.image.resize(images, [side, side], antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)


def _center_square(image: tf.Tensor, fraction: float) -> tf.Tensor:
    height, width = tf.unstack(tf.shape(image)[:2])
    short = tf.cast(tf.minimum(height, width), tf.float32)
    side = tf.maximum(tf.cast(tf.round(short * fraction), tf.int32), 1)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _order(size: Any, seed: Any) -> tf.Tensor:
    """Return the order of an epoch, the same wherever and whenever it is asked for."""
    indices = tf.range(tf.cast(size, tf.int64))
    if seed is None:
        return indices
    return tf.random.experimental.stateless_shuffle(indices, seed)


def _shuffled(
    examples: tf.data.Dataset, window: int, seed: tf.Tensor
) -> tf.data.Dataset:
    """Shuffle within windows, whose first has a random length.

    `Dataset.shuffle` would not do: its order depends on the global seed too.
    """
    first = tf.random.stateless_uniform([], seed, 1, window + 1, tf.int64)
    head = examples.take(first).batch(window)
    windows = head.concatenate(examples.skip(first).batch(window))

    def shuffle(index: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[Any, ...]:
        order = _order(tf.shape(batch[1])[0], tf.random.fold_in(seed, index))
        return tuple(tf.gather(each, order) for each in batch)

    return windows.enumerate().map(shuffle).unbatch()


def _held_out(size: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed).permutation(size)
    return np.sort(order[count:]), np.sort(order[:count])
