"""Options, labels and models that do not suit a data set are refused."""

from typing import Any

from gmpq_tf.data.augment import AUGMENTATIONS
from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.pipeline import Dataset
from gmpq_tf.data.scaling import AS_STORED
from gmpq_tf.data.spec import DatasetSpec
from gmpq_tf.data.splits import ArraySplit


def check_tensors(config: DataConfig, spec: DatasetSpec) -> None:
    """Refuses options that do not suit the kind of data set.

    Args:
        config: The options.
        spec: The row of the set.

    Raises:
        DataError: A loss, targets or labels are not for such a set.
    """
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


def check_pixels(config: DataConfig) -> None:
    """Refuses to read images as they are stored, which is for other numbers.

    Args:
        config: The options.

    Raises:
        DataError: The scaling is for numbers that are not pixels.
    """
    if config.scaling == AS_STORED:
        raise DataError(
            f"Images hold pixels. Received: scaling={AS_STORED!r} with "
            f"dataset={config.dataset!r}. Give '0..255' for pixels as they are."
        )


def check_augment(config: DataConfig, spec: DatasetSpec) -> None:
    """Refuses an augmentation that is not made for the set's kind of labels.

    Args:
        config: The options.
        spec: The row of the set.

    Raises:
        DataError: It would leave labels or targets behind.
    """
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
    # What a shift does to numbers is not known, and a mask has no class for what it
    # brings in from outside the image. Masks can be mirrored.
    if spec.holds == "tensors":
        return spec.any_size and name == "flip"
    row = AUGMENTATIONS[name]
    return row.classes if spec.holds == "classes" else row.objects is not None


def check_means(config: DataConfig, channels: int) -> None:
    """Refuses means and deviations of another number of channels.

    Args:
        config: The options.
        channels: Channels of the images.

    Raises:
        DataError: There are neither one nor as many as channels.
    """
    mean = config.input_scaling().mean
    if mean is not None and len(mean) not in (1, channels):
        raise DataError(
            "`mean` and `std` need one number a channel. "
            f"Received: mean={mean} for images of {channels} channels. "
            f"Give {channels} numbers, or channels={len(mean)}."
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
