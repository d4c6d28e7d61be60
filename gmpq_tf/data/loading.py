"""From a configuration to the splits of a data set, which are read and checked."""

import dataclasses
import math
from collections.abc import Sequence

from gmpq_tf.data.checks import (
    check_augment,
    check_labels,
    check_means,
    check_pixels,
    check_tensors,
)
from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.datasets import spec_of, with_defaults
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import check_files
from gmpq_tf.data.pipeline import Dataset, augmentation_of
from gmpq_tf.data.spec import DatasetSpec, Raw
from gmpq_tf.data.splits import ArraySplit, FileSplit, Split, read_into_memory

MEMORY_LIMIT = 10**9  # Bytes of decoded images of one split.


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
    check_tensors(config, spec)
    config = _as_read(with_defaults(config, spec), spec, reads)
    check_augment(config, spec)
    raw = spec.source(dataclasses.replace(config, channels=_asked(config, reads)), spec)
    if raw.scaling is not None:
        config = _stored(config, raw.scaling)
    else:
        check_pixels(config)
        check_means(config, raw.image_shape[2])
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


def _prepared(name: str, split: Split, raw: Raw, config: DataConfig) -> Split:
    """Reads a split into memory, if allowed and it fits, and checks its labels."""
    cropped = name == "train" and augmentation_of(config).crop is not None
    may_cache = config.cache and (split.keeps_all or not cropped)
    if may_cache and not isinstance(split, ArraySplit) and _fits_memory(split, raw):
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


def _fits_memory(split: Split, raw: Raw) -> bool:
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
