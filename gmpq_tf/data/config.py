"""Which data set to load and how: one frozen dataclass, validated when it is made."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from gmpq_tf.data.augment import AUGMENTATIONS, AugmentationName
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.scaling import InputScaling
from gmpq_tf.spelling import suggest
from gmpq_tf.task.tensor_losses import check_losses


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set of one run. `None` means the data set's own default.

    Args:
        dataset: A name in `DATASETS`, any TFDS image classification set (also as
            `"set/config"`), or the path of a folder of class folders; for boxes
            `"voc0712"`, the path of a folder with VOC annotations, or of a COCO file or
            the folder that holds it.
        data_dir: Where TFDS keeps the set (TFDS's own default if None); the folder
            itself with `dataset="folder"`, `"voc_folder"` or `"coco_json"`.
        image_size: Side of the square images the model reads, in pixels, or height and
            width (32x24). Images of another shape are cut to their middle; images with
            boxes or masks are stretched instead. None: the set's own size; for a
            folder, what the model reads.
        scaling: `"0..255"`, `"0..1"`, `"-1..1"` or `"mean_std"` of pixels; `.npz` files
            are always read `"as_stored"`.
        mean: Mean of each channel, pixels in 0..1; only with `"mean_std"`.
        std: Standard deviation of each channel, pixels in 0..1; only with `"mean_std"`.
        batch_size: Images in a batch.
        validation_size: Training images held out: a count, or a fraction if below 1.
            Not used by sets that have both a validation and a test split.
        augment: `"flip_crop"` (shifts and mirrors), `"shift"`, `"random_crop"` or
            `"random_resized_crop"` (which mirror too), or `"none"`, which leaves
            training images as they are; the two random crops are cut out of the
            stored images. With boxes `"ssd"` (colours, zooming out, crops that keep
            objects, mirroring), `"flip"` or `"none"`.
        seed: Seed of the shuffling and of the augmentation.
        split_seed: Seed of the held-out choice; keep it the same for every command of
            a comparison, or one run trains on what another holds out.
        cache: Keep decoded images in memory where a split takes at most 1 GB; training
            images that are cropped at random are decoded anew each epoch.
        download: Let TFDS fetch a set that is not on disk. None: only if `data_dir` is
            not given; a given folder is expected to hold the set already.
        channels: Read images as grey (1) or RGB (3). None: as the model reads them; for
            a new model as they are stored (a folder as grey if all its images are).
        labels: `"none"`: the images have no labels, or labels of other classes than the
            model's. Then all images below a folder are read, and functions that need
            labels refuse them. `"crops"`: each object of a data set with boxes is cut
            out and becomes an image of its class. None: the data set has labels; in a
            folder they are the names of sub-folders.
        targets: `"inputs"`: the model is to give what it reads, as an autoencoder does,
            whatever the labels are. None: classes, boxes, or the targets of tensors
            (`.npz` files with the arrays inputs and targets, or folders `images` and
            `masks`).
        loss: For tensors, a loss of Keras by its name, such as `"mse"` or `"mae"`; for
            each of several outputs as `"a=mse,b=mae"`. None: the only sensible one.

    Raises:
        DataError: A value is out of range or a name is unknown.
    """

    dataset: str = "cifar10"
    data_dir: str | None = None
    image_size: int | tuple[int, int] | None = None
    scaling: str = "0..1"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    batch_size: int = 256
    validation_size: float | None = None
    augment: AugmentationName | None = None
    seed: int = 0
    split_seed: int = 0
    cache: bool = True
    download: bool | None = None
    channels: int | None = None
    labels: Literal["none", "crops"] | None = None
    targets: Literal["inputs"] | None = None
    loss: str | None = None

    def __post_init__(self) -> None:
        _check_integer("batch_size", self.batch_size, low=1)
        _check_integer("seed", self.seed, low=0)
        _check_integer("split_seed", self.split_seed, low=0)
        object.__setattr__(self, "image_size", _checked_size(self.image_size))
        if self.channels not in (None, 1, 3):
            raise DataError(
                "`channels` must be 1 (grey) or 3 (RGB). "
                f"Received: channels={self.channels!r}. Leave it out to read images as "
                "the model does."
            )
        if self.labels not in (None, "none", "crops"):
            raise DataError(
                "`labels` must be 'none', 'crops' (the objects of a data set with "
                "boxes), or None where the data set has labels. "
                f"Received: labels={self.labels!r}. Leave it out, or give 'none'."
            )
        if self.targets not in (None, "inputs"):
            raise DataError(
                "`targets` must be 'inputs', or None where the data set has targets. "
                f"Received: targets={self.targets!r}. Leave it out, or give 'inputs'."
            )
        if self.loss is not None:
            check_losses(self.loss)
        _check_validation_size(self.validation_size)
        _check_augment(self.augment)
        if self.scaling != "mean_std":
            self.input_scaling()

    @property
    def may_download(self) -> bool:
        """Whether TFDS may fetch a set that is not on disk."""
        return self.data_dir is None if self.download is None else self.download

    def input_scaling(self) -> InputScaling:
        """Returns the input scaling.

        Raises:
            DataError: The kind is `"mean_std"`, and mean or std is not given.
        """
        return InputScaling(self.scaling, _tuple(self.mean), _tuple(self.std))


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _check_integer(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise DataError(
            f"`{name}` must be an integer of at least {low}. "
            f"Received: {name}={value!r}. Give such as {name}={max(low, 32)}."
        )


def _checked_size(size: Any) -> int | tuple[int, int] | None:
    """Returns the side of a square as a number, another size as a pair."""
    if isinstance(size, tuple | list) and len(size) == 2:
        for side in size:
            _check_integer("image_size", side, low=1)
        return size[0] if size[0] == size[1] else (size[0], size[1])
    if size is not None:
        _check_integer("image_size", size, low=1)
    return size


def _check_validation_size(size: float | None) -> None:
    if size is None:
        return
    number = isinstance(size, int | float) and not isinstance(size, bool)
    if not number or not (0 <= size < 1 or (size >= 1 and size == size // 1)):
        raise DataError(
            "`validation_size` must be a count of images or a fraction below 1. "
            f"Received: validation_size={size!r}. Give such as 5000 or 0.1."
        )


def _check_augment(augment: str | None) -> None:
    known = isinstance(augment, str) and augment in AUGMENTATIONS
    if augment is not None and not known:
        raise DataError(
            f"`augment` must be one of {', '.join(map(repr, AUGMENTATIONS))}. "
            f"Received: augment={augment!r}. {suggest(str(augment), AUGMENTATIONS)}"
        )
