"""Augmentation of pixels: crops of single images, shifts and flips of whole batches."""

import dataclasses
from typing import Literal

import tensorflow as tf

from gmpq_tf.data.crops import (
    RandomWindow,
    random_resized_window,
    random_square_window,
)
from gmpq_tf.data.object_augment import VaryObjects, vary_flip, vary_ssd
from gmpq_tf.data.splits import WHOLE, Share


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One way to vary training images.

    Args:
        shift_pixels: Largest shift along each axis, in pixels.
        shift_divisor: If given, the largest shift is at least the side of the image
            divided by this.
        flip: Whether images are mirrored left to right, with probability 1/2.
        crop: The part of the stored image that is read in place of the centre.
        objects: Changes images with objects, and their boxes; None: the augmentation
            is not for such images.
        classes: Whether the augmentation is for images with one class each.
    """

    shift_pixels: int = 0
    shift_divisor: int | None = None
    flip: bool = False
    crop: RandomWindow | None = None
    objects: VaryObjects | None = None
    classes: bool = True

    def largest_shift(self, side: int) -> int:
        """Returns the largest shift in pixels for images of `side` pixels."""
        share = side // self.shift_divisor if self.shift_divisor else 0
        return max(self.shift_pixels, share)


# The names of `AUGMENTATIONS`, which the command lines show.
AugmentationName = Literal[
    "none",
    "flip",
    "flip_crop",
    "shift",
    "ssd",
    "random_crop",
    "random_resized_crop",
]
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    # 4 pixels at side 32: the usual CIFAR recipe (He et al., CVPR 2016, section 4.2).
    "flip_crop": Augmentation(shift_pixels=1, shift_divisor=8, flip=True),
    # Digits have a handedness and 8 x 8 pixels.
    "shift": Augmentation(shift_pixels=1),
    # Section 4.1: random regions of 224 after resizing the shorter side to 256.
    "random_crop": Augmentation(flip=True, crop=random_square_window),
    "random_resized_crop": Augmentation(flip=True, crop=random_resized_window),
    "flip": Augmentation(flip=True, objects=vary_flip),
    "ssd": Augmentation(objects=vary_ssd, classes=False),
}


def augment_batch(
    images: tf.Tensor,
    augmentation: Augmentation,
    seed: tf.Tensor,
    share: Share = WHOLE,
) -> tf.Tensor:
    """Shifts every image by its own random offset, and mirrors half of them.

    The same seed gives the same result. Pixels that are shifted in are zeros, as when
    padding by the largest shift and cropping at random. `augmentation.crop` works on
    single images and is not applied here.

    Args:
        images: Pixels, `[batch, height, width, channels]`, height and width known.
        augmentation: Largest shift, and whether to mirror.
        seed: Two integers, `[2]`.
        share: Which part of a whole batch the images are. Each image is changed as it
            would be in the whole batch.

    Returns:
        A tensor of the same shape and type.
    """
    batch, (height, width) = tf.shape(images)[0] * share.count, images.shape[1:3]
    first, last = share.bounds(batch)
    shift = augmentation.largest_shift(min(height, width))
    seeds = tf.random.split(seed, 3)
    rows = _window(batch, height, shift, seeds[0])
    columns = _window(batch, width, shift, seeds[1])
    result = images
    if augmentation.flip:
        mirrored = tf.random.stateless_uniform([batch, 1], seeds[2]) < 0.5
        columns = tf.where(mirrored, columns[:, ::-1], columns)
    rows, columns = rows[first:last], columns[first:last]
    if shift:
        result = tf.pad(images, [[0, 0], [shift, shift], [shift, shift], [0, 0]])
        result = tf.gather(result, rows, axis=1, batch_dims=1)
    if shift or augmentation.flip:
        result = tf.gather(result, columns, axis=2, batch_dims=1)
    return tf.ensure_shape(result, images.shape)


def _window(batch: tf.Tensor, side: int, shift: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns the padded positions that each image keeps: `[batch, side]`."""
    first = tf.random.stateless_uniform([batch, 1], seed, 0, 2 * shift + 1, tf.int32)
    return first + tf.range(side)
