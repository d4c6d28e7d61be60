"""Images of a TFDS split, read from its shards as they are needed."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.data.decoding import ImageDecoder
from gmpq_tf.data.splits import (
    WHOLE,
    Crop,
    Share,
    order_of,
    random_parts,
    window_at,
)

# Encoded images that are shuffled at a time; TFDS shuffled all as it wrote. Up to three
# such windows are in memory: 1.6 GB of ImageNet.
SHUFFLE_WINDOW = 5_000
# Above this many examples those held out lie in one run, which can be read alone.
SCATTER_LIMIT = 100_000


@dataclasses.dataclass(frozen=True)
class StreamSplit:
    """Part of a TFDS split, read from its shards.

    Shuffling happens within windows of 5,000 images, which begin elsewhere each epoch.

    Args:
        builder: The TFDS builder.
        name: The TFDS split.
        ranges: Examples `[first, last)` of the TFDS split.
        decode: Encoded image to uint8 image.
        chosen: Which of those examples belong to this split, bool; None for all.
    """

    builder: Any
    name: str
    ranges: tuple[tuple[int, int], ...]
    decode: ImageDecoder
    chosen: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of images."""
        if self.chosen is not None:
            return int(self.chosen.sum())
        return sum(last - first for first, last in self.ranges)

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

        def read(position: tf.Tensor, example: Any) -> tuple[tf.Tensor, tf.Tensor]:
            encoded, label = example
            image = self.decode(encoded, window_at(crop, position))
            return image, tf.cast(label, tf.int64)

        examples = self._encoded()
        if seed is not None:
            examples = _shuffled(examples, SHUFFLE_WINDOW, seed)
        known = examples.apply(tf.data.experimental.assert_cardinality(self.size))
        places = known.enumerate()
        if share.count > 1:  # encoded images are read, but not decoded, by all
            places = places.filter(lambda p, _: share.holds(p, batch_size, self.size))
        images = places.map(read, tf.data.AUTOTUNE)
        return images.batch(batch_size // share.count, drop_remainder)

    def hold_out(self, count: int, seed: int) -> tuple["StreamSplit", "StreamSplit"]:
        """Returns this split without `count` examples, and those examples.

        They are random ones, as of a split in memory; of more than 100,000 examples a
        run in stored order, since reading past the others would take too long.
        """
        if self.size > SCATTER_LIMIT:
            return self._hold_out_run(count, seed)
        held: np.ndarray = np.zeros(self.size, bool)
        held[random_parts(self.size, count, seed)[1]] = True
        return (
            dataclasses.replace(self, chosen=~held),
            dataclasses.replace(self, chosen=held),
        )

    def _hold_out_run(
        self, count: int, seed: int
    ) -> tuple["StreamSplit", "StreamSplit"]:
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
            if self.chosen is not None:
                examples = _chosen(examples, self.chosen)
            return examples.map(lambda example: (example["image"], example["label"]))


def _chosen(examples: tf.data.Dataset, chosen: np.ndarray) -> tf.data.Dataset:
    numbered = tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(chosen), examples)
    return numbered.filter(lambda keep, _: keep).map(lambda _, example: example)


def _shuffled(
    examples: tf.data.Dataset, window: int, seed: tf.Tensor
) -> tf.data.Dataset:
    """Shuffles within windows, whose first has a random length.

    `Dataset.shuffle` would not do: its order depends on the global seed too.
    """
    first = tf.random.stateless_uniform([], seed, 1, window + 1, tf.int64)
    head = examples.take(first).batch(window)
    windows = head.concatenate(examples.skip(first).batch(window))

    def shuffle(index: tf.Tensor, batch: tuple[tf.Tensor, ...]) -> tuple[Any, ...]:
        order = order_of(tf.shape(batch[1])[0], tf.random.fold_in(seed, index))
        return tuple(tf.gather(each, order) for each in batch)

    # The next window is read while this one is used up.
    return windows.prefetch(1).enumerate().map(shuffle).unbatch()
