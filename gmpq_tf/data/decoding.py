"""From encoded images to squares of one size, decoding no more than is kept."""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from gmpq_tf.data.crops import center_window, cut

# From (height, width) to the window that is kept.
Window = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class ImageDecoder:
    """Turns encoded images (JPEG, PNG or BMP) into uint8 squares.

    Args:
        side: Side of the squares, in pixels.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        crop_fraction: Side of the centre square that is kept, as a share of the
            image's shorter side, above 0 and at most 1.
        banner: Rows at the bottom of each image that are no part of the picture.
        stored_side: Side of the stored images, where all are squares of one size.
    """

    side: int
    channels: int
    crop_fraction: float = 1.0
    banner: int = 0
    stored_side: int | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether the squares are the stored images, pixel for pixel."""
        return (
            self.stored_side == self.side
            and self.crop_fraction == 1.0
            and not self.banner
        )

    def __call__(self, encoded: tf.Tensor, window: Window | None = None) -> tf.Tensor:
        """Decode one image.

        Args:
            encoded: A scalar string.
            window: Which part to keep; the centre square if None.

        Returns:
            uint8 `[side, side, channels]`.
        """
        if window is None and self.keeps_all:
            image = tf.io.decode_image(encoded, self.channels, expand_animations=False)
            return tf.ensure_shape(image, [self.side, self.side, self.channels])
        window = window or functools.partial(center_window, share=self.crop_fraction)
        return resize(self._part(encoded, window), self.side)

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
        top, left, height, width = tf.unstack(window(self._picture(shape)))
        # One column more at each side: what lies there smooths the colours beside it.
        first = tf.maximum(left - 1, 0)
        last = tf.minimum(left + width + 1, shape[1])
        wider = tf.io.decode_and_crop_jpeg(
            encoded, tf.stack([top, first, height, last - first]), self.channels
        )
        return wider[:, left - first : left - first + width]

    def _part_of_any(self, encoded: tf.Tensor, window: Window) -> tf.Tensor:
        image = tf.io.decode_image(encoded, self.channels, expand_animations=False)
        return cut(image, window(self._picture(tf.shape(image))))

    def _picture(self, shape: tf.Tensor) -> tf.Tensor:
        """Return height and width above the banner."""
        return tf.stack([tf.maximum(shape[0] - self.banner, 1), shape[1]])


def resize(images: tf.Tensor, side: int) -> tf.Tensor:
    """Resize uint8 images to a square, bilinear and anti-aliased, if they are not.

    Args:
        images: uint8 `[height, width, channels]`, with or without a batch before.
        side: Side of the result, in pixels.

    Returns:
        uint8 images of side `side`.
    """
    if images.shape[-3] == images.shape[-2] == side:
        return images
    resized = tf.image.resize(images, [side, side], antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)
