"""Image classification sets of TensorFlow Datasets, and our own builders for it."""

import difflib
from pathlib import Path
from typing import Any

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.decoding import ImageDecoder, height_width
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.spec import TEST_FRACTION, DatasetSpec, Raw
from gmpq_tf.data.stream import StreamSplit

_HIDDEN_TEST_LABELS = frozenset({"imagenet2012", "imagenet2012_subset"})


def load_tfds(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads an image classification set through TensorFlow Datasets.

    A set with only a training split gives its last 20 % as the test split; one without
    a test split uses its validation split as such.

    Raises:
        DataError: TFDS does not know the set, it is not on disk and cannot be fetched,
            or it is not for image classification.
    """
    builder = prepared_builder(config, spec.name)
    (height, width, stored), class_names = _image_features(builder)
    stored_side = height if height == width else None
    size = height_width(config.image_size or stored_side or _required_side(spec))
    channels = config.channels or stored
    decode = ImageDecoder(size, channels, spec.crop_fraction, spec.banner, stored_side)
    splits = {
        name: StreamSplit(builder, tfds_name, ((first, last),), decode)
        for name, (tfds_name, first, last) in _tfds_ranges(builder).items()
    }
    return Raw(dict(splits), (*size, channels), class_names, stored)


def make_builder(config: DataConfig, name: str) -> Any:
    """Returns the TFDS builder of a set, prepared or not.

    Args:
        config: `data_dir`, and the name to show in errors.
        name: `set`, `set/config` or `set:version`.

    Raises:
        DataError: TFDS has no such set, config or version; the nearest are named.
    """
    import tensorflow_datasets as tfds

    from gmpq_tf.data import fgvc_aircraft  # noqa: F401  TFDS knows it when imported.

    try:
        return tfds.builder(name, data_dir=config.data_dir)
    except (
        tfds.core.DatasetNotFoundError,
        ValueError,
        AssertionError,  # An unknown version.
        ImportError,  # A namespace that needs another package.
    ) as error:
        raise DataError(
            "`dataset` must be 'digits', a folder of class folders that exists, or a "
            "TFDS image classification set (such as 'cifar10'). "
            f"Received: dataset={config.dataset!r}. {_nearest(name)}"
        ) from error


def _nearest(name: str) -> str:
    import tensorflow_datasets as tfds

    base = name.replace(":", "/").split("/")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        near = difflib.get_close_matches(name, [*known, "digits", "folder"])
        return f"Nearest in TFDS: {', '.join(near) or 'none'}."
    builder = tfds.builder_cls(base)
    configs = [f"{base}/{config}" for config in builder.builder_configs]
    near = difflib.get_close_matches(name, configs, cutoff=0.0)
    return f"Nearest in TFDS: {', '.join(near or [base])}, version {builder.VERSION}."


def prepared_builder(config: DataConfig, name: str) -> Any:
    """Returns the TFDS builder of a set on disk, after fetching it if allowed.

    Args:
        config: `data_dir`, `download`, and the name to show in errors.
        name: As for `make_builder`.

    Raises:
        DataError: There is no such set, or it is not on disk and was not fetched.
    """
    builder = make_builder(config, name)
    if builder.is_prepared():
        return builder
    if not config.may_download:
        reason = f"download={config.download}"
        raise DataError(_missing(config, builder, name, reason))
    try:
        builder.download_and_prepare()
    except DataError:
        raise
    except Exception as error:  # TFDS raises anything from OSError to AssertionError.
        said = " ".join(str(error).split())[:200]
        reason = f"the download failed: {type(error).__name__}: {said}"
        raise DataError(_missing(config, builder, name, reason)) from error
    return builder


def _missing(config: DataConfig, builder: Any, name: str, reason: str) -> str:
    message = (
        f"The data set must be on disk. Received: dataset={name!r}, "
        f"data_dir={config.data_dir!r}, which has no prepared copy ({reason}). "
    )
    command = _fetch_command(config, builder, name)
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        asked = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        folder = Path(str(builder.data_dir_root), "downloads", "manual")
        return (
            f"{message}TFDS cannot fetch this set itself: {asked} Put the archives, "
            f"not unpacked, into {folder} (the manual_dir), then run: {command}, "
            "or give the data_dir that holds a prepared copy."
        )
    return (
        f"{message}Fetch it where there is a network: {command}, "
        "or give download=True, or the data_dir that holds it."
    )


def _fetch_command(config: DataConfig, builder: Any, name: str) -> str:
    where = f", data_dir={config.data_dir!r}" if config.data_dir else ""
    module = type(builder).__module__
    own = f"import {module}; " if module.startswith(__package__ or "") else ""
    code = f"tfds.builder({name!r}{where}).download_and_prepare()"
    return f'python -c "{own}import tensorflow_datasets as tfds; {code}"'


def _image_features(
    builder: Any,
) -> tuple[tuple[int | None, int | None, int], tuple[str, ...]]:
    features = builder.info.features
    has_both = "image" in features and "label" in features
    if not has_both or not hasattr(features["label"], "num_classes"):
        raise DataError(
            "A TFDS set must have the features 'image' and 'label' (one class). "
            f"Received: dataset={builder.name!r} with {', '.join(features)}. "
            "Choose an image classification set."
        )
    return tuple(features["image"].shape), tuple(features["label"].names)


def _required_side(spec: DatasetSpec) -> int:
    if spec.image_size is None:
        raise DataError(
            "The images of this set vary in size or are not square. "
            f"Received: dataset={spec.name!r}, image_size=None. "
            "Give the side the model reads, such as image_size=224."
        )
    return spec.image_size


def _tfds_ranges(builder: Any) -> dict[str, tuple[str, int, int]]:
    """Returns split -> (TFDS split, first example, last example exclusive)."""
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    names = {"train": "train", "validation": "validation", "test": "test"}
    if builder.name in _HIDDEN_TEST_LABELS:
        sizes.pop("test", None)
    if "test" not in sizes:
        names = {"train": "train", "test": "validation"}
    ranges = {
        split: (name, 0, sizes[name]) for split, name in names.items() if name in sizes
    }
    if set(ranges) == {"train"}:
        last = sizes["train"]
        first = last - round(TEST_FRACTION * last)
        ranges = {"train": ("train", 0, first), "test": ("train", first, last)}
    return ranges
