"""Windows of images, (top, left, height, width) in pixels: the part that is read."""

from collections.abc import Callable

import tensorflow as tf

# A function of the image's (height, width), a seed of two integers and the wanted
# ratio height / width that returns an int32 window.
RandomWindow = Callable[..., tf.Tensor]

# 224 of 256 pixels: the crop of section 4.1, as a share of the shorter side.
SQUARE_SHARE = 224 / 256
# Szegedy et al., CVPR 2015, section 6: shares of the area, width over height.
AREA_RANGE = (0.08, 1.0)
RATIO_RANGE = (3 / 4, 4 / 3)


def center_window(shape: tf.Tensor, share: float, ratio: float = 1.0) -> tf.Tensor:
    """Returns the window in the middle of an image: a square, or of a given ratio.

    A share of 0.875, resized to 224 pixels, equals the usual ImageNet evaluation:
    resize the shorter side to 256, keep the middle 224 x 224 pixels.

    Args:
        shape: Height and width of the image, int32 `[2]`.
        share: Side of the window relative to the largest possible window, above 0, at
            most 1.
        ratio: Height of the window over its width.

    Returns:
        The window, int32 `[4]`.
    """
    size = _largest_size(shape, share, ratio)
    return tf.concat([(shape - size) // 2, size], 0)


def random_square_window(
    shape: tf.Tensor, seed: tf.Tensor, ratio: float = 1.0
) -> tf.Tensor:
    """Returns a square of 0.875 of the shorter side at a random place (section 4.1).

    Args:
        shape: Height and width of the image, int32 `[2]`.
        seed: Two integers, `[2]`.
        ratio: Height of the window over its width; 1: a square.

    Returns:
        The window, int32 `[4]`.
    """
    size = _largest_size(shape, SQUARE_SHARE, ratio)
    room = shape - size + 1
    share = tf.random.stateless_uniform([2], seed)  # Below 1, so below `room` after.
    start = tf.cast(share * tf.cast(room, tf.float32), tf.int32)
    return tf.concat([start, size], 0)


def random_resized_window(
    shape: tf.Tensor, seed: tf.Tensor, ratio: float = 1.0
) -> tf.Tensor:
    """Returns a random window of 8 to 100 % of the area (Szegedy et al., 2015).

    Its ratio is between 3:4 and 4:3. TensorFlow draws the height uniformly, not the
    area, and the ratio uniformly, not its logarithm, unlike torchvision's
    RandomResizedCrop.

    Args:
        shape: Height and width of the image, int32 `[2]`.
        seed: Two integers, `[2]`.
        ratio: Height over width of the model's input; the range of ratios is scaled by
            it.

    Returns:
        The window, int32 `[4]`; the whole image where no such window was found.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([shape, [1]], 0),
        bounding_boxes=tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=[bound / ratio for bound in RATIO_RANGE],
        area_range=AREA_RANGE,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def cut(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Returns the part of an image inside a window.

    Args:
        image: `[height, width, channels]`.
        window: int32 `[4]`, inside the image.

    Returns:
        `[window height, window width, channels]`, of the image's type.
    """
    top, left, height, width = tf.unstack(window)
    return image[top : top + height, left : left + width]


def _largest_size(shape: tf.Tensor, share: float, ratio: float) -> tf.Tensor:
    """Size of the largest window with a ratio, times a share: int32 `[2]`."""
    height, width = tf.unstack(tf.cast(shape, tf.float32))
    high = tf.minimum(height, width * ratio)
    size = tf.stack([high, high / ratio]) * share
    whole = tf.maximum(tf.cast(tf.round(size), tf.int32), 1)
    return tf.minimum(whole, tf.cast(shape, tf.int32))
