"""Where data sets come from: TFDS, a folder of images, scikit-learn's digits.

A source is a function of the configuration and the data set's row that returns `Raw`.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.splits import (
    ArraySplit,
    FileSplit,
    Split,
    StreamSplit,
    square_decoder,
)
from gmpq_tf.names import suggest

TEST_FRACTION = 0.2  # Of a set that comes without a test split.
_TEST_SEED = 0  # The test images of a set never depend on a run's seed.
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})


@dataclasses.dataclass(frozen=True)
class Raw:
    """A data set as its source gives it.

    Args:
        splits: Any of `"train"`, `"validation"` and `"test"`.
        image_shape: Height, width and channels of the decoded images.
        class_names: One name a class.
    """

    splits: Mapping[str, Split]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """One row of `DATASETS`: a source and the defaults of its images.

    Args:
        name: Name in the registry.
        source: Loads the set.
        tfds_name: Name in TFDS, for sets that come from there.
        num_classes: Number of classes, where known before loading.
        image_size: Side of the square images, in pixels; None if they vary.
        validation_size: Images held out of the training split: count or fraction.
        augment: Default augmentation.
        mean: Mean of each channel, pixels in 0..1, where known.
        std: Standard deviation of each channel, where known.
        crop_fraction: Side of the centre square that is kept, as a share of the
            image's shorter side.
    """

    name: str
    source: Callable[[DataConfig, "DatasetSpec"], Raw]
    tfds_name: str | None = None
    num_classes: int | None = None
    image_size: int | None = None
    validation_size: float = 0.1
    augment: str = "flip_crop"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_fraction: float = 1.0


def load_digits(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Load scikit-learn's 1,797 handwritten digits; 20 % of each class are the test.

    Source: Alpaydin and Kaynak, UCI repository, 1998; pixels 0..16 become 0..255.
    """
    from sklearn.datasets import load_digits as load

    digits = load()
    images = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    kept, held = stratified_split(labels, TEST_FRACTION, _TEST_SEED)
    splits = {
        "train": ArraySplit(images[kept], labels[kept]),
        "test": ArraySplit(images[held], labels[held]),
    }
    return Raw(splits, (8, 8, 1), tuple(str(digit) for digit in range(10)))


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split indices so that each class is held out in the same proportion.

    Args:
        labels: int `[size]`.
        fraction: Share of each class to hold out, 0 to 1.
        seed: Decides which.

    Returns:
        Sorted indices of the images kept and of those held out.
    """
    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held.extend(members[: round(fraction * len(members))])
    chosen: np.ndarray = np.zeros(len(labels), bool)
    chosen[np.array(held, int)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def load_folder(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Load class folders of images, or such under `train` and `validation` or `test`.

    Without a `train` folder 20 % of each class become the test split. Images are read
    as RGB.

    Raises:
        DataError: The folder, its classes or a file in it cannot be used.
    """
    root = _folder_root(config)
    parts = _folder_parts(root)
    class_names = _class_names(parts["train"])
    side = config.image_size or spec.image_size
    if side is None:
        raise DataError(
            "Images of a folder need a common size. Received: image_size=None. "
            "Give the side the model reads, such as image_size=96."
        )
    decode = square_decoder(side, channels=3, crop_fraction=spec.crop_fraction)
    splits = {
        name: FileSplit(*_labelled_files(part, class_names), decode)
        for name, part in parts.items()
    }
    if "test" not in splits:
        splits["train"], splits["test"] = _stratified_files(splits["train"])
    return Raw(dict(splits), (side, side, 3), class_names)


def load_tfds(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Load an image classification set through TensorFlow Datasets.

    A set with only a training split gives its last 20 % as the test split; one without
    a test split uses its validation split as such.

    Raises:
        DataError: TFDS does not know the set, it is not on disk and cannot be fetched,
            or it is not for image classification.
    """
    builder = _prepared_builder(config, spec.tfds_name or spec.name)
    shape, class_names = _image_features(builder)
    side = config.image_size
    if side is None and (None in shape[:2] or shape[0] != shape[1]):
        side = _required_side(spec)
    decode = square_decoder(side, shape[2], spec.crop_fraction)
    splits = {
        name: StreamSplit(builder, tfds_name, ((first, last),), decode)
        for name, (tfds_name, first, last) in _tfds_ranges(builder).items()
    }
    image_shape = (side or shape[0], side or shape[1], shape[2])
    return Raw(splits, image_shape, class_names)


def find_corrupt(paths: tuple[str, ...], whole: bool) -> str | None:
    """Return the first file that is not a readable image, or None.

    Args:
        paths: Image files.
        whole: Decode every pixel, rather than read only the header.
    """
    for path in paths:
        try:
            with Image.open(path) as image:
                if whole:
                    image.load()
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
            return path
    return None


def check_files(paths: tuple[str, ...], whole: bool = False) -> None:
    """Refuse files that are not readable images; see `find_corrupt`.

    Raises:
        DataError: A file is not readable; it is named.
    """
    corrupt = find_corrupt(paths, whole)
    if corrupt is not None:
        raise DataError(
            "Every image file must be readable. "
            f"Received: {corrupt} (empty, truncated or not an image). "
            "Replace or remove it."
        )


def _folder_root(config: DataConfig) -> Path:
    named = config.data_dir if config.dataset == "folder" else config.dataset
    root = Path(named).expanduser() if named else None
    if root is None or not root.is_dir():
        raise DataError(
            "A folder data set needs a folder that exists. "
            f"Received: dataset={config.dataset!r}, data_dir={config.data_dir!r}. "
            "Give dataset='folder' with data_dir='<path>', or dataset='<path>'."
        )
    return root


def _folder_parts(root: Path) -> dict[str, Path]:
    """Return the folders that hold class folders, by split."""
    if not (root / "train").is_dir():
        return {"train": root}
    names = {"validation": ("validation", "val"), "test": ("test",)}
    parts = {"train": root / "train"}
    for split, spellings in names.items():
        found = [root / name for name in spellings if (root / name).is_dir()]
        parts.update({split: found[0]} if found else {})
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in _visible_folders(folder)))
    if len(names) < 2:
        raise DataError(
            "A folder data set needs one subfolder a class, two classes at least. "
            f"Received: {folder} with {len(names)} ({', '.join(names) or 'none'}). "
            "Point to the folder whose subfolders are the classes."
        )
    return names


def _visible_folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _labelled_files(
    folder: Path, class_names: tuple[str, ...]
) -> tuple[tuple[str, ...], np.ndarray]:
    for extra in sorted({p.name for p in _visible_folders(folder)} - set(class_names)):
        raise DataError(
            "Every class needs training images. "
            f"Received: {folder / extra}, which is no class of the training split. "
            f"{suggest(extra, class_names)} Rename or remove it."
        )
    paths, labels = [], []
    for label, name in enumerate(class_names):
        files = sorted(
            str(path)
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in _IMAGE_SUFFIXES
        )
        paths.extend(files)
        labels.extend([label] * len(files))
    check_files(tuple(paths))
    return tuple(paths), np.array(labels, np.int64)


def _stratified_files(split: FileSplit) -> tuple[FileSplit, FileSplit]:
    kept, held = stratified_split(split.labels, TEST_FRACTION, _TEST_SEED)
    return split.take(kept), split.take(held)


def _prepared_builder(config: DataConfig, name: str) -> Any:
    builder = _builder(config, name)
    if builder.is_prepared():
        return builder
    if not config.may_download:
        raise DataError(_missing(config, name, f"download={config.download}"))
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises anything from OSError to AssertionError.
        reason = f"the download failed: {type(error).__name__}: {str(error)[:200]}"
        raise DataError(_missing(config, name, reason)) from error
    return builder


def _builder(config: DataConfig, name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=config.data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = ", ".join(difflib.get_close_matches(name, [*known, "digits"]))
        raise DataError(
            "`dataset` must be 'digits', a folder of class folders that exists, or a "
            "TFDS image classification set (such as 'cifar10'). "
            f"Received: dataset={config.dataset!r}."
            + (f" Nearest in TFDS: {near}." if near else "")
        ) from error


def _missing(config: DataConfig, name: str, reason: str) -> str:
    where = f", data_dir={config.data_dir!r}" if config.data_dir else ""
    command = f"import tensorflow_datasets as tfds; tfds.load({name!r}{where})"
    return (
        f"The data set must be on disk. Received: dataset={name!r}, "
        f"data_dir={config.data_dir!r}, which has no prepared copy ({reason}). "
        f'Fetch it where there is a network: python -c "{command}", '
        "or give download=True, or the data_dir that holds it."
    )


def _image_features(builder: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
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
    """Return the TFDS split and the examples in it that each split takes."""
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


_HIDDEN_TEST_LABELS = frozenset({"imagenet2012", "imagenet2012_subset"})
