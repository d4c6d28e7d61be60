"""Images of a TFDS split, read from its shards as they are needed."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.data.decoding import Crop
from gmpq_tf.data.splits import (
    WHOLE,
    Share,
    order_of,
    random_parts,
)

# Encoded images that are shuffled at a time; TFDS has shuffled all images when it wrote
# them. Up to three such windows are in memory: 1.6 GB of ImageNet.
SHUFFLE_WINDOW = 5_000
# Above this many examples, those held out are consecutive, so that they can be read
# without reading all others.
SCATTER_LIMIT = 100_000


@dataclasses.dataclass(frozen=True)
class ClassLabels:
    """The class of an image, as TFDS image classification sets have it."""

    @property
    def features(self) -> dict[str, Any]:
        """Features of an example that TFDS has to decode, as its `PartialDecoding`."""
        return {"label": True}

    def of(self, example: Any) -> tf.Tensor:
        """Returns the class of an example, int64 scalar."""
        return tf.cast(example["label"], tf.int64)


@dataclasses.dataclass(frozen=True)
class StreamSplit:
    """Part of a TFDS split, read from its shards.

    Images are shuffled within windows of 5,000, whose borders differ in each epoch.

    Args:
        builder: The TFDS builder.
        name: The TFDS split.
        ranges: Examples `[first, last)` of the TFDS split.
        decode: Turns encoded image and label into uint8 image and label.
        chosen: Which of those examples belong to this split, bool; None for all.
        labels: Reads the labels of an example.
        others: Splits whose examples are spread evenly among those of this one.
    """

    builder: Any
    name: str
    ranges: tuple[tuple[int, int], ...]
    decode: Any
    chosen: np.ndarray | None = None
    labels: Any = ClassLabels()
    others: tuple["StreamSplit", ...] = ()

    @property
    def size(self) -> int:
        """Number of images, those of `others` included."""
        if self.chosen is not None:
            return int(self.chosen.sum())
        return self._own + sum(other.size for other in self.others)

    @property
    def _own(self) -> int:
        """Number of examples in `ranges`, without `others`."""
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

        def read(position: tf.Tensor, example: Any) -> tuple[tf.Tensor, Any]:
            return self.decode.example(*example, crop, position)

        examples = self._encoded()
        if seed is not None:
            examples = _shuffled(examples, SHUFFLE_WINDOW, seed)
        known = examples.apply(tf.data.experimental.assert_cardinality(self.size))
        places = known.enumerate()
        if share.count > 1:  # all workers read all encoded images, but decode few
            places = places.filter(lambda p, _: share.holds(p, batch_size, self.size))
        images = places.map(read, tf.data.AUTOTUNE)
        return images.batch(batch_size // share.count, drop_remainder)

    def hold_out(self, count: int, seed: int) -> tuple["StreamSplit", "StreamSplit"]:
        """Returns this split without `count` examples, and those examples.

        They are random, as in a split in memory. Of more than 100,000 examples they are
        consecutive, because skipping the others one by one would take too long.
        """
        if self.size > SCATTER_LIMIT and not self.others:
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
                    {"image": True, **self.labels.features},
                    decoders={"image": tfds.decode.SkipDecoding()},
                ),
            )
            pairs = examples.map(lambda e: (e["image"], self.labels.of(e)))
            if self.others:
                parts = [pairs, *(other._encoded() for other in self.others)]
                sizes = [self._own, *(other.size for other in self.others)]
                pairs = _spread(parts, sizes)
            return pairs if self.chosen is None else _chosen(pairs, self.chosen)


def _spread(parts: list[tf.data.Dataset], sizes: list[int]) -> tf.data.Dataset:
    """Mixes the examples of several sets evenly; each set keeps its order."""
    places = [(np.arange(size) + 0.5) / size for size in sizes if size]
    numbers: np.ndarray = np.repeat(np.arange(len(sizes)), sizes)
    order = np.argsort(np.concatenate(places), kind="stable")
    choices = tf.data.Dataset.from_tensor_slices(numbers[order].astype(np.int64))
    return tf.data.Dataset.choose_from_datasets(parts, choices)


def _chosen(examples: tf.data.Dataset, chosen: np.ndarray) -> tf.data.Dataset:
    numbered = tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(chosen), examples)
    return numbered.filter(lambda keep, _: keep).map(lambda _, example: example)


def _shuffled(
    examples: tf.data.Dataset, window: int, seed: tf.Tensor
) -> tf.data.Dataset:
    """Shuffles within windows, the first of which has a random length.

    `Dataset.shuffle` is not used because its order also depends on the global seed.
    """
    first = tf.random.stateless_uniform([], seed, 1, window + 1, tf.int64)
    head = examples.take(first).batch(window)
    windows = head.concatenate(examples.skip(first).batch(window))

    def shuffle(index: tf.Tensor, batch: Any) -> Any:
        count = tf.shape(tf.nest.flatten(batch)[0])[0]
        order = order_of(count, tf.random.fold_in(seed, index))
        return tf.nest.map_structure(lambda each: tf.gather(each, order), batch)

    # The next window is read while this one is consumed.
    return windows.prefetch(1).enumerate().map(shuffle).unbatch()
