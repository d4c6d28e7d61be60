"""The fields of a row of `DATASETS`, and of the data set that its source returns."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from gmpq_tf.data.augment import AugmentationName
from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.splits import Split
from gmpq_tf.task.targets import Target

TEST_FRACTION = 0.2  # Share of images held out where a set has no test split.


@dataclasses.dataclass(frozen=True)
class Raw:
    """A data set as its source gives it.

    Args:
        splits: Any of `"train"`, `"validation"` and `"test"`.
        image_shape: Height, width and channels of the decoded images.
        class_names: One name per class.
        stored_channels: Channels of the stored images, if they are read with others.
        targets: For tensors, the targets of each output.
        scaling: The only scaling that suits the set; None: any.
    """

    splits: Mapping[str, Split]
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    stored_channels: int | None = None
    targets: Mapping[str, Target] = dataclasses.field(default_factory=dict)
    scaling: str | None = None


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """One row of `DATASETS`: a source and the defaults of its images.

    Args:
        name: Name in the registry; for sets of TFDS their name there.
        source: Loads the set.
        num_classes: Number of classes, where known before loading.
        image_size: Side of the square images, in pixels; None if sizes vary.
        validation_size: Images held out of the training split: count or fraction.
        augment: Default augmentation.
        mean: Mean of each channel, pixels in 0..1, where known.
        std: Standard deviation of each channel, where known.
        crop_fraction: Side of the centre square that is kept, as a share of the
            image's shorter side. Random crops of training images replace it.
        banner: Rows at the bottom of each image that do not belong to the picture.
        holds: `"classes"`, one per image, `"boxes"` with a class each, or `"tensors"`.
        any_size: Whether images are files of any size, read in the size of the model's
            input.
    """

    name: str
    source: Callable[[DataConfig, "DatasetSpec"], Raw]
    num_classes: int | None = None
    image_size: int | None = None
    validation_size: float = 0.1
    augment: AugmentationName = "flip_crop"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_fraction: float = 1.0
    banner: int = 0
    holds: Literal["classes", "boxes", "tensors"] = "classes"
    any_size: bool = False
