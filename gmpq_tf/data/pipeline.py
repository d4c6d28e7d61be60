"""From a configuration to `tf.data` pipelines of model inputs and labels."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from gmpq_tf.data.augment import AUGMENTATIONS, Augmentation, augment_batch
from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.datasets import spec_of, with_defaults
from gmpq_tf.data.decoding import height_width, resize
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import check_files
from gmpq_tf.data.identity import identity_of
from gmpq_tf.data.scaling import AS_STORED, scale_images
from gmpq_tf.data.spec import DatasetSpec, Raw
from gmpq_tf.data.splits import (
    WHOLE,
    ArraySplit,
    FileSplit,
    Share,
    Split,
    read_into_memory,
)
from gmpq_tf.task.targets import ALONE, Target, Targets

MEMORY_LIMIT = 10**9  # Bytes of decoded images of one split.
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
        augmentation = _augmentation(self.config)
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


def load_dataset(
    config: DataConfig, reads: Sequence[int | None] | None = None
) -> Dataset:
    """Loads a data set.

    Args:
        config: What to load and how.
        reads: (height, width, channels) of the model's input, None where it takes any.
            The size is used for a folder, the channels for every set, if `config` does
            not give them.

    Returns:
        Its splits, with the validation images held out of the training images.

    Raises:
        DataError: The set is unknown, not on disk, or not usable as it is.
    """
    spec = spec_of(config)
    _check_tensors(config, spec)
    config = _as_read(with_defaults(config, spec), spec, reads)
    _check_augment(config, spec)
    raw = spec.source(dataclasses.replace(config, channels=_asked(config, reads)), spec)
    if raw.scaling is not None:
        config = _stored(config, raw.scaling)
    else:
        _check_pixels(config)
        _check_channels(config, raw.image_shape[2])
        if raw.image_shape[2] != (raw.stored_channels or raw.image_shape[2]):
            # Recorded in the configuration; where images are read as stored, it is
            # left as given.
            config = dataclasses.replace(config, channels=raw.image_shape[2])
    if config.labels == "none" or config.targets is not None:
        raw = dataclasses.replace(raw, class_names=(), targets={})
    splits = dict(raw.splits)
    if "validation" not in splits and "train" in splits:
        splits |= _hold_out(splits["train"], config)
    prepared = dict(splits)
    if spec.holds == "classes":
        prepared = {k: _prepared(k, s, raw, config) for k, s in splits.items()}
    return Dataset(
        config,
        prepared,
        raw.image_shape,
        raw.class_names,
        splits,
        "tensors" if config.targets is not None else spec.holds,
        arrays=raw.targets,
    )


def _check_tensors(config: DataConfig, spec: DatasetSpec) -> None:
    """Refuses options that do not suit the kind of data set."""
    tensors = spec.holds == "tensors" or config.targets is not None
    if config.loss is not None and not tensors:
        raise DataError(
            "`loss` is for data sets of tensors; others have their own. Received: "
            f"loss={config.loss!r} with dataset={config.dataset!r}, which holds "
            f"{spec.holds}. Leave it out, or give targets='inputs' or other data."
        )
    if config.targets is not None and spec.holds == "boxes":
        raise DataError(
            "Images that are their own targets are read without boxes. Received: "
            f"targets={config.targets!r} with dataset={config.dataset!r}. Name a "
            "folder of images alone."
        )
    if spec.holds == "tensors" and config.labels is not None:
        raise DataError(
            "Tensors have no labels but targets. Received: "
            f"labels={config.labels!r} with dataset={config.dataset!r}. Leave it out."
        )


def _check_pixels(config: DataConfig) -> None:
    if config.scaling == AS_STORED:
        raise DataError(
            f"Images hold pixels. Received: scaling={AS_STORED!r} with "
            f"dataset={config.dataset!r}. Give '0..255' for pixels as they are."
        )


def _stored(config: DataConfig, scaling: str) -> DataConfig:
    """Sets the scaling of numbers that are not pixels; refuses options of pixels."""
    if config.scaling not in (scaling, DataConfig.scaling):
        raise DataError(
            "Numbers in .npz files are read as they are stored. Received: "
            f"scaling={config.scaling!r} with dataset={config.dataset!r}. Leave it "
            "out, and scale them before they are saved."
        )
    for name in ("image_size", "channels"):
        if getattr(config, name) is not None:
            raise DataError(
                "Arrays in .npz files have their shape. Received: "
                f"{name}={getattr(config, name)!r} with dataset={config.dataset!r}. "
                "Leave it out."
            )
    return dataclasses.replace(config, scaling=scaling)


def _check_augment(config: DataConfig, spec: DatasetSpec) -> None:
    """Refuses an augmentation that is not made for the set's kind of labels."""
    fits = [
        name
        for name, row in AUGMENTATIONS.items()
        if name == "none" or _moves(name, spec)
    ]
    if config.augment not in fits:
        raise DataError(
            f"`augment` must be one of {', '.join(map(repr, fits))} for images with "
            f"{spec.holds}. Received: augment={config.augment!r} with "
            f"dataset={config.dataset!r}. Leave it out for {spec.augment!r}."
        )


def _moves(name: str, spec: DatasetSpec) -> bool:
    """Whether an augmentation moves labels or targets together with the images."""
    if spec.holds == "tensors":  # of numbers nothing is known, of masks what is outside
        return spec.any_size and name == "flip"
    row = AUGMENTATIONS[name]
    return row.classes if spec.holds == "classes" else row.objects is not None


def _as_read(
    config: DataConfig, spec: DatasetSpec, reads: Sequence[int | None] | None
) -> DataConfig:
    """Fills in the model's image size for sets whose images have any size."""
    sized = config.image_size is not None or spec.image_size is not None
    if sized or not spec.any_size or reads is None:
        return config
    height, width = tuple(reads)[:2] if len(reads) == 3 else (None, None)
    if height is None or width is None:
        return config
    return dataclasses.replace(config, image_size=(height, width))


def _asked(config: DataConfig, reads: Sequence[int | None] | None) -> int | None:
    """Returns the channels that the user or else the model asks for, or None."""
    if config.channels is not None:
        return config.channels
    if reads is not None and len(reads) == 3 and reads[2] in (1, 3):
        return reads[2]
    return None


def check_num_classes(model_output_shape: tuple[Any, ...], dataset: Dataset) -> None:
    """Refuses a model whose number of outputs is not the data set's number of classes.

    Args:
        model_output_shape: Such as `model.output_shape`: `(None, classes)`.
        dataset: The data set.

    Raises:
        DataError: The numbers differ.
    """
    if model_output_shape[-1] != dataset.num_classes:
        raise DataError(
            "A model needs one output for each class of the data set. "
            f"Received: output shape {tuple(model_output_shape)} for "
            f"dataset={dataset.config.dataset!r} of {dataset.num_classes} classes. "
            "Build the model with that many classes or choose its own data set; where "
            "labels are not needed, --labels=none leaves them unread."
        )


def check_labels(split: ArraySplit, num_classes: int, name: str) -> None:
    """Refuses labels that are not classes.

    Args:
        split: Images and labels in memory.
        num_classes: Labels must be 0 to this, exclusive.
        name: The split, for the error.

    Raises:
        DataError: A label is out of range; the first is named.
    """
    wrong = (split.labels < 0) | (split.labels >= num_classes)
    if wrong.any():
        index = int(wrong.argmax())
        raise DataError(
            f"Labels must be in 0..{num_classes - 1}. Received: label "
            f"{split.labels[index]} of image {index} of the {name} split, and "
            f"{int(wrong.sum()) - 1} more. Number the classes from 0 without gaps."
        )


def _shared(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Makes a distribution strategy split each batch, not the files, among workers."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return batches.with_options(options)


def _augmentation(config: DataConfig) -> Augmentation:
    return AUGMENTATIONS[config.augment or "none"]


def _prepared(name: str, split: Split, raw: Raw, config: DataConfig) -> Split:
    """Reads a split into memory, if allowed and it fits, and checks its labels."""
    cropped = name == "train" and _augmentation(config).crop is not None
    may_cache = config.cache and (split.keeps_all or not cropped)
    if may_cache and not isinstance(split, ArraySplit) and _fits(split, raw):
        split = _in_memory(split, raw.image_shape)
    if isinstance(split, ArraySplit) and raw.class_names:
        check_labels(split, len(raw.class_names), name)
    return split


def _in_memory(split: Split, shape: tuple[int, ...]) -> ArraySplit:
    try:
        return read_into_memory(split, shape)
    except DataError:
        if isinstance(split, FileSplit):
            check_files(split.paths, whole=True)  # Names the file.
        raise


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


def _fits(split: Split, raw: Raw) -> bool:
    return split.size * math.prod(raw.image_shape) <= MEMORY_LIMIT


def _hold_out(train: Split, config: DataConfig) -> dict[str, Split]:
    size = config.validation_size or 0
    count = round(size * train.size) if size < 1 else int(size)
    if count >= train.size:
        raise DataError(
            "`validation_size` must be less than the number of training images. "
            f"Received: validation_size={size} of {train.size} images. "
            "Lower it, or give a fraction such as 0.1."
        )
    kept, held = train.hold_out(count, config.split_seed)
    return {"train": kept, "validation": held}


def _check_channels(config: DataConfig, channels: int) -> None:
    mean = config.input_scaling().mean
    if mean is not None and len(mean) not in (1, channels):
        raise DataError(
            "`mean` and `std` need one number a channel. "
            f"Received: mean={mean} for images of {channels} channels. "
            f"Give {channels} numbers, or channels={len(mean)}."
        )
