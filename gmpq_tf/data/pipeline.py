"""The splits of a data set as `tf.data` pipelines of model inputs and labels."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from gmpq_tf.data.augment import AUGMENTATIONS, Augmentation, augment_batch
from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.decoding import height_width, resize
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import check_files
from gmpq_tf.data.identity import identity_of
from gmpq_tf.data.scaling import AS_STORED, scale_images
from gmpq_tf.data.splits import (
    WHOLE,
    ArraySplit,
    FileSplit,
    Share,
    Split,
)
from gmpq_tf.task.targets import ALONE, Target, Targets

# Errors that TensorFlow raises where an image is missing or cannot be decoded.
_UNREADABLE = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.DataLossError,
)
# Second numbers of seeds: separate random streams for separate purposes.
_SHUFFLE, _CALIBRATION, _AUGMENT, _CROP = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a data set as pipelines of (float32 NHWC images, int64 labels).

    Images without labels come as pipelines of images alone. For images with objects the
    labels are a dict: "boxes" float32 [B, M, 4] as (ymin, xmin, ymax, xmax) in 0 to 1,
    "classes" int32 [B, M] with -1 for padding, "difficult" bool [B, M].

    Args:
        config: How images are prepared, with every default filled in.
        splits: `"train"`, `"validation"` and `"test"`; any may be missing.
        image_shape: Height, width and channels of the images in the splits.
        class_names: One name per class; () for images without labels.
        sources: The splits before images were read into memory.
        holds: `"classes"`, one per image, `"boxes"` with a class each, or `"tensors"`.
        encode: Converts the labels of a batch to what the model's loss takes; None: no
            conversion.
        arrays: For tensors, the targets of each output.
    """

    config: DataConfig
    splits: Mapping[str, Split]
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    sources: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    holds: str = "classes"
    encode: Callable[[Any], Any] | None = None
    arrays: Mapping[str, Target] = dataclasses.field(default_factory=dict)

    @property
    def targets(self) -> Targets | None:
        """Targets and loss of a set of tensors; None for other sets."""
        if self.holds != "tensors":
            return None
        own = {ALONE: Target(self.input_shape)}
        return Targets(self.arrays or own, self.config.loss)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for images without labels."""
        return len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether each image has a label or target."""
        return bool(self.class_names) or self.holds == "tensors"

    def check_labelled(self) -> None:
        """Refuses images without labels.

        Raises:
            DataError: There are no labels.
        """
        if not self.labelled:
            raise DataError(
                "Training needs the class of each image. Received: labels='none' with "
                f"dataset={self.config.dataset!r}. Use what needs no labels "
                "(gmpq-compress, gmpq-search --strategy=loss_delta), or a data set "
                "that has them: a folder with one sub-folder a class."
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of the model's input; for tensors any shape."""
        if self.as_stored:
            return self.image_shape
        size = self.config.image_size or self.image_shape[:2]
        return (*height_width(size), self.image_shape[2])

    @property
    def as_stored(self) -> bool:
        """Whether inputs are numbers other than pixels, read without scaling."""
        return self.config.scaling == AS_STORED

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of `"train"`, `"validation"` and `"test"`."""
        names = ("train", "validation", "test")
        return {n: self.splits[n].size if n in self.splits else 0 for n in names}

    def identity(self, name: str) -> str:
        """Returns 16 hex digits, a digest of the images of a split.

        Args:
            name: `"train"`, `"validation"` or `"test"`.

        Returns:
            The digits; "" for a split that is missing.
        """
        split = self.sources.get(name, self.splits.get(name))
        return "" if split is None else identity_of(split)

    @property
    def steps_per_epoch(self) -> int:
        """Number of full training batches."""
        return self.sizes["train"] // self.config.batch_size

    def train(
        self, start_epoch: int = 0, epochs: int | None = None, share: Share = WHOLE
    ) -> tf.data.Dataset:
        """Returns shuffled, augmented training batches of full size, epoch after epoch.

        Order and augmentation of epoch k depend only on the seed and on k, so training
        that is resumed at epoch k reads the same images as without interruption.

        Args:
            start_epoch: First epoch, from 0.
            epochs: Number of epochs; None goes on without end, for
                `fit(steps_per_epoch=dataset.steps_per_epoch)`.
            share: The part of each batch to prepare. Several workers, each with its own
                share, together read what a single one would.

        Raises:
            DataError: The training split has less than one batch, or no labels.
        """
        self.check_labelled()
        self._full_batches()
        last = tf.int64.max if epochs is None else start_epoch + epochs
        batches = tf.data.Dataset.range(start_epoch, last).flat_map(
            lambda epoch: self._epoch(epoch, share)
        )
        count = (
            tf.data.INFINITE_CARDINALITY
            if epochs is None
            else epochs * self.steps_per_epoch
        )
        counted = batches.apply(tf.data.experimental.assert_cardinality(count))
        return _shared(counted.prefetch(tf.data.AUTOTUNE))

    def validation(self) -> tf.data.Dataset:
        """Returns held-out images in stored order; the last batch may be smaller."""
        return self._plain("validation")

    def test(self) -> tf.data.Dataset:
        """Returns the test images in stored order; the last batch may be smaller."""
        return self._plain("test")

    def calibration(self, count: int = 512) -> tf.data.Dataset:
        """Returns random training images without augmentation, in batches.

        Args:
            count: Number of images; all of them if there are fewer.
        """
        size = min(self.config.batch_size, count)
        batches = self._split("train").batches(size, self._seed(_CALIBRATION), False)
        return self._inputs(batches.unbatch().take(count).batch(size))

    @contextmanager
    def naming_damaged_images(self) -> Iterator[None]:
        """Names the damaged image if the block fails because one cannot be decoded.

        Images that are not kept in memory are decoded when they are needed, and
        TensorFlow's error then names no file. All images are read again to find it.

        Raises:
            DataError: An image cannot be read or decoded; the first one is named.
        """
        try:
            yield
        except _UNREADABLE:
            for name, split in self.splits.items():
                _refuse_damaged(name, split)
            raise  # All images are readable: the cause is something else.

    def _epoch(self, epoch: tf.Tensor, share: Share) -> tf.data.Dataset:
        fold = tf.random.fold_in
        augmentation = augmentation_of(self.config)
        variation = fold(self._seed(_AUGMENT), epoch)
        batches = self._split("train").batches(
            self.config.batch_size,
            fold(self._seed(_SHUFFLE), epoch),
            drop_remainder=True,
            crop=self._crop(augmentation, fold(self._seed(_CROP), epoch)),
            share=share,
        )

        def prepare(step: tf.Tensor, batch: Any) -> tuple[tf.Tensor, Any]:
            images, labels = self._sized(batch[0]), batch[1]
            seed = fold(variation, step)
            if self.arrays and not self.as_stored:  # masks move with their images
                both = tf.concat([tf.cast(images, tf.int32), labels[..., None]], -1)
                both = augment_batch(both, augmentation, seed, share)
                images, labels = both[..., :-1], both[..., -1]
            elif self.holds != "boxes" and not self.as_stored:
                # Images with boxes have been augmented already.
                images = augment_batch(images, augmentation, seed, share)
            images = scale_images(images, self.config.input_scaling())
            return images, self._encoded(self._wanted(images, labels))

        return batches.enumerate().map(prepare, tf.data.AUTOTUNE)

    def _crop(self, augmentation: Augmentation, seed: tf.Tensor) -> Any:
        """Returns the crop of an epoch, a function of image size and position in it."""
        fold = tf.random.fold_in
        window, vary = augmentation.crop, augmentation.objects
        if self.holds == "boxes" and vary is not None:
            return lambda image, objects, place, size: vary(
                image, objects, fold(seed, place), size
            )
        if self.holds != "boxes" and window is not None:
            ratio = self._ratio
            return lambda shape, place: window(shape, fold(seed, place), ratio)
        return None

    def _wanted(self, images: tf.Tensor, labels: Any) -> Any:
        """Returns the targets of a batch: the labels, or the inputs themselves."""
        return images if self.config.targets == "inputs" else labels

    def _encoded(self, labels: Any) -> Any:
        return labels if self.encode is None else self.encode(labels)

    def _plain(self, name: str) -> tf.data.Dataset:
        split = self._split(name)
        return self._inputs(split.batches(self.config.batch_size, None, False))

    def _inputs(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        scaling = self.config.input_scaling()

        def prepare(images: tf.Tensor, labels: Any) -> Any:
            scaled = scale_images(self._sized(images), scaling)
            wanted = self._wanted(scaled, labels)
            return (scaled, self._encoded(wanted)) if self.labelled else scaled

        scaled = batches.map(prepare, tf.data.AUTOTUNE)
        return _shared(scaled.prefetch(tf.data.AUTOTUNE))

    def _sized(self, images: tf.Tensor) -> tf.Tensor:
        images = tf.ensure_shape(images, [None, *self.image_shape])
        if self.as_stored:
            return images
        height, width = self.image_shape[:2]
        high = min(height, round(width * self._ratio))
        wide = min(width, round(high / self._ratio))
        top, left = (height - high) // 2, (width - wide) // 2
        middle = images[:, top : top + high, left : left + wide]
        return resize(middle, self.input_shape[:2])

    @property
    def _ratio(self) -> float:
        """Height over width of the images that pipelines give."""
        height, width = self.input_shape[:2]
        return height / width

    def _seed(self, stream: int) -> tf.Tensor:
        return tf.constant([self.config.seed, stream], tf.int64)

    def _split(self, name: str) -> Split:
        if not self.sizes[name]:
            raise DataError(
                f"The {name} split must not be empty. Received: "
                f"dataset={self.config.dataset!r} with {self.sizes} images. "
                "Add images to it"
                + (", or raise validation_size." if name == "validation" else ".")
            )
        return self.splits[name]

    def _full_batches(self) -> None:
        self._split("train")
        if not self.steps_per_epoch:
            raise DataError(
                "`batch_size` must not exceed the number of training images. "
                f"Received: batch_size={self.config.batch_size} with "
                f"{self.sizes['train']} images. Lower it."
            )


def _shared(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Makes a distribution strategy split each batch, not the files, among workers."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return batches.with_options(options)


def augmentation_of(config: DataConfig) -> Augmentation:
    """Returns the augmentation of training images that a configuration names."""
    return AUGMENTATIONS[config.augment or "none"]


def _refuse_damaged(name: str, split: Split) -> None:
    """Decodes every image of a split not in memory; raises if one is damaged."""
    if isinstance(split, ArraySplit):
        return
    if isinstance(split, FileSplit):
        check_files(split.paths, whole=True)
        return
    number = 0
    try:
        for _ in split.batches(1, None, False):
            number += 1
    except tf.errors.OpError as error:
        raise DataError(
            "Every image must be decodable. Received: one that is not in the split "
            f"{name!r}, after {number} in stored order ({str(error.message)[:200]}). "
            "Prepare the data set again."
        ) from error
