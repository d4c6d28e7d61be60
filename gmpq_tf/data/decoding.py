"""Decodes images to pixels of one size; of a JPEG only the part that is kept."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from gmpq_tf.data.crops import center_window, cut

# A function of the image's (height, width) that returns the window to keep.
Window = Callable[[tf.Tensor], tf.Tensor]
# A function of the image's (height, width) and its position in the epoch that returns
# the window to read.
Crop = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# Decoded and resized in float32, an image of this many pixels takes 0.8 GB.
MAX_PIXELS = 2**26


@dataclasses.dataclass(frozen=True)
class ImageDecoder:
    """Turns encoded images (JPEG, PNG, BMP or GIF) into uint8 images of one size.

    Args:
        size: Height and width, in pixels; a number is the side of squares.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        crop_fraction: Side of the kept window relative to the largest window of the
            same ratio in the image, above 0 and at most 1.
        banner: Rows at the bottom of each image that do not belong to the picture.
        stored_side: Side of the stored images, where all are squares of one size.
    """

    size: int | tuple[int, int]
    channels: int
    crop_fraction: float = 1.0
    banner: int = 0
    stored_side: int | None = None

    @property
    def _ratio(self) -> float:
        """Height over width of the decoded images."""
        height, width = height_width(self.size)
        return height / width

    @property
    def keeps_all(self) -> bool:
        """Whether the results are the stored images, pixel for pixel."""
        return (
            height_width(self.size) == (self.stored_side, self.stored_side)
            and self.crop_fraction == 1.0
            and not self.banner
        )

    def __call__(self, encoded: tf.Tensor, window: Window | None = None) -> tf.Tensor:
        """Decodes one image.

        Args:
            encoded: A scalar string.
            window: The part to keep; None: the middle.

        Returns:
            uint8 `[height, width, channels]`.
        """
        if window is None and self.keeps_all:
            shape = [*height_width(self.size), self.channels]
            return tf.ensure_shape(self._whole(encoded), shape)
        window = window or functools.partial(
            center_window, share=self.crop_fraction, ratio=self._ratio
        )
        return resize(self._part(encoded, window), self.size)

    def example(
        self, encoded: tf.Tensor, label: tf.Tensor, crop: Crop | None, place: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Decodes one image of an epoch.

        Args:
            encoded: A scalar string.
            label: Its class, an integer scalar.
            crop: Chooses the window of each image of the epoch; None: the middle.
            place: Position of the image in the epoch, int64 scalar.

        Returns:
            uint8 `[height, width, channels]`, and the label.
        """
        return self(encoded, window_at(crop, place)), label

    def _whole(self, encoded: tf.Tensor) -> tf.Tensor:
        return decode_whole(encoded, self.channels)

    def _part(self, encoded: tf.Tensor, window: Window) -> tf.Tensor:
        if self.channels not in (1, 3):  # No JPEG has these.
            return self._part_of_any(encoded, window)
        return tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: self._part_of_jpeg(encoded, window),
            lambda: self._part_of_any(encoded, window),
        )

    def _part_of_jpeg(self, encoded: tf.Tensor, window: Window) -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(encoded)
        if self.channels == 3:
            return self._cropped_jpeg(encoded, window, shape)
        return tf.cond(  # TensorFlow does not turn CMYK to grey.
            shape[2] == 4,
            lambda: self._part_of_any(encoded, window),
            lambda: self._cropped_jpeg(encoded, window, shape),
        )

    def _cropped_jpeg(
        self, encoded: tf.Tensor, window: Window, shape: tf.Tensor
    ) -> tf.Tensor:
        top, left, height, width = tf.unstack(window(self._picture(shape)))
        # One column more at each side: JPEG interpolates colours from neighbouring
        # columns.
        first = tf.maximum(left - 1, 0)
        last = tf.minimum(left + width + 1, shape[1])
        wider = tf.io.decode_and_crop_jpeg(
            encoded, tf.stack([top, first, height, last - first]), self.channels
        )
        return wider[:, left - first : left - first + width]

    def _part_of_any(self, encoded: tf.Tensor, window: Window) -> tf.Tensor:
        image = self._whole(encoded)
        return cut(image, window(self._picture(tf.shape(image))))

    def _picture(self, shape: tf.Tensor) -> tf.Tensor:
        """Returns height and width above the banner."""
        return tf.stack([tf.maximum(shape[0] - self.banner, 1), shape[1]])


def decode_whole(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes an image as it is stored.

    Args:
        encoded: A scalar string: JPEG, PNG, BMP or GIF.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Returns:
        uint8 `[height, width, channels]`.
    """
    if channels != 1:
        image = tf.io.decode_image(encoded, channels, expand_animations=False)
    else:
        image = to_grey(tf.io.decode_image(encoded, 3, expand_animations=False))
    return tf.ensure_shape(image, [None, None, channels])


def window_at(crop: Crop | None, position: tf.Tensor) -> Window | None:
    """Returns the function that gives one image's window; None without a crop.

    Args:
        crop: Chooses the window of each image of an epoch.
        position: Position of the image in the epoch, int64 scalar.
    """
    return None if crop is None else lambda shape: crop(shape, position)


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Returns height and width of a size: a pair, or the side of a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def to_grey(images: tf.Tensor) -> tf.Tensor:
    """Returns the luma of RGB images (ITU-R BT.601).

    Args:
        images: uint8 `[..., 3]`.

    Returns:
        uint8 `[..., 1]`, equal to Pillow's `convert("L")`.
    """
    weights = tf.constant([19595, 38470, 7471])  # of 65,536
    wide = tf.tensordot(tf.cast(images, tf.int32), weights[:, None], 1)
    return tf.cast((wide + 0x8000) // 0x10000, tf.uint8)


def resize(images: tf.Tensor, size: int | Sequence[int] | tf.Tensor) -> tf.Tensor:
    """Resizes uint8 images, bilinear and anti-aliased, if they have another size.

    Args:
        images: uint8 `[height, width, channels]`, with or without a batch before.
        size: Height and width of the result, in pixels, or the side of squares.

    Returns:
        uint8 of that size, otherwise of the shape of `images`.
    """
    if tf.is_tensor(size):
        return _resized(images, size)
    height, width = height_width(size)
    if images.shape[-3] == height and images.shape[-2] == width:
        return images
    return _resized(images, [height, width])


def _resized(images: tf.Tensor, size: Any) -> tf.Tensor:
    resized = tf.image.resize(images, size, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)
