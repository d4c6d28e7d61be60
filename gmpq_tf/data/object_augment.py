"""Augmentation of training images for detectors, together with their boxes.

Liu et al., "SSD", ECCV 2016, section 2.2, and section 3.6 for zooming out. A seed
decides everything; boxes and pixels are moved by the same numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from gmpq_tf.data.crops import cut
from gmpq_tf.data.decoding import resize
from gmpq_tf.detection.boxes import iou

Labels = Mapping[str, tf.Tensor]
# A function of a uint8 image, its objects, a seed and a size that returns an image of
# that size and the objects in it.
VaryObjects = Callable[
    [tf.Tensor, Labels, tf.Tensor, tuple[int, int]], tuple[tf.Tensor, Any]
]

# Mean RGB of ImageNet: the colour around an image that is zoomed out.
FILL = (123.0, 117.0, 104.0)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, (0.5, 1.5), (0.5, 1.5), 18 / 360
LARGEST_CANVAS = 4.0
# Least IoU of a cut-out part with an object; 0: no condition.
LEAST_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
TRIALS, SIDES, RATIOS = 50, (0.3, 1.0), (0.5, 2.0)


def vary_ssd(
    image: tf.Tensor, labels: Labels, seed: tf.Tensor, size: tuple[int, int]
) -> tuple[tf.Tensor, Labels]:
    """Varies colours, zooms out, cuts a part out, stretches it and mirrors it.

    The least overlaps are those of the paper: 0.1, 0.3, 0.5, 0.7 and 0.9. The widely
    copied PyTorch port leaves 0.5 out and does not enforce the overlap.

    Args:
        image: uint8 [H, W, C].
        labels: "boxes" [M, 4] as (ymin, xmin, ymax, xmax), 0 to 1, "classes" [M], -1:
            padding, and "difficult" [M].
        seed: two integers, [2].
        size: height and width of the result.

    Returns:
        uint8 [*size, C], and labels of the same shapes, in which objects whose centre
        is outside have become padding.
    """
    seeds = tf.unstack(tf.random.split(seed, 4))
    window = zoomed_window(seeds[0])
    window = cut_window(tf.shape(image)[:2], labels, window, seeds[1])
    image, labels = stretch(image, labels, window, size, seeds[2])
    return mirror(image, labels, seeds[3])


def vary_flip(
    image: tf.Tensor, labels: Labels, seed: tf.Tensor, size: tuple[int, int]
) -> tuple[tf.Tensor, Labels]:
    """Stretches an image and mirrors it with probability 1/2; see `vary_ssd`.

    Args:
        image: uint8 [H, W, C].
        labels: as for `vary_ssd`.
        seed: two integers, [2].
        size: height and width of the result.

    Returns:
        uint8 [*size, C], and the labels.
    """
    return mirror(resize(image, size), labels, seed)


def zoomed_window(seed: tf.Tensor) -> tf.Tensor:
    """Returns the window of the whole image or, with probability 1/2, a larger canvas.

    The canvas has 1 to 4 times the sides of the image, which lies at a random place.

    Args:
        seed: two integers, [2].

    Returns:
        float32 [4] as (ymin, xmin, ymax, xmax), relative to the image: 0 and 1 are its
        edges.
    """
    chance, ratio, top, left = tf.unstack(tf.random.stateless_uniform([4], seed))
    side = 1.0 + (LARGEST_CANVAS - 1.0) * ratio
    side = tf.where(chance < 0.5, side, 1.0)
    start = -tf.stack([top, left]) * (side - 1.0)
    return tf.concat([start, start + side], 0)


def cut_window(
    shape: tf.Tensor, labels: Labels, window: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """Returns a random part of a window, by one of seven rules of equal probability.

    The rules: the whole window; a part whose IoU with an object is at least 0.1, 0.3,
    0.5, 0.7 or 0.9; any part. A part's sides are 0.3 to 1 times the window's, its
    height over width in pixels is 0.5 to 2, and it holds the centre of an object. The
    first of 50 random parts that fulfils this is taken, the whole window if none does.

    Args:
        shape: height and width of the image in pixels, int32 [2].
        labels: objects of the image.
        window: from `zoomed_window`, float32 [4].
        seed: two integers, [2].

    Returns:
        float32 [4], in the same coordinates.
    """
    seeds = tf.unstack(tf.random.split(seed, 3))
    rule = tf.random.stateless_uniform([], seeds[0], 0, 7, tf.int32)
    sides = tf.random.stateless_uniform([TRIALS, 2], seeds[1], *SIDES)
    starts = tf.random.stateless_uniform([TRIALS, 2], seeds[2]) * (1.0 - sides)
    whole = window[2:] - window[:2]
    low = window[:2] + starts * whole
    parts = tf.concat([low, low + sides * whole], -1)
    pixels = sides * whole * tf.cast(shape, tf.float32)
    ratio = pixels[:, 0] / pixels[:, 1]
    right = (ratio >= RATIOS[0]) & (ratio <= RATIOS[1])
    known = labels["classes"] >= 0
    right &= tf.reduce_any(holds_centers(parts, labels["boxes"]) & known, -1)
    overlap = tf.where(known, iou(parts, labels["boxes"]), -1.0)
    least = tf.gather(tf.constant(LEAST_IOUS), tf.maximum(rule - 1, 0))
    right &= tf.reduce_any(overlap >= least, -1) & (rule > 0)
    part = parts[tf.argmax(tf.cast(right, tf.int32))]
    return tf.where(tf.reduce_any(right), part, window)


def holds_centers(windows: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Whether the centre of each box lies in each window.

    Args:
        windows: [W, 4] as (ymin, xmin, ymax, xmax).
        boxes: [M, 4] as (ymin, xmin, ymax, xmax).

    Returns:
        bool [W, M].
    """
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2)[None]
    inside = (centers > windows[:, None, :2]) & (centers < windows[:, None, 2:])
    return tf.reduce_all(inside, -1)


def stretch(
    image: tf.Tensor,
    labels: Labels,
    window: tf.Tensor,
    size: tuple[int, int],
    seed: tf.Tensor,
) -> tuple[tf.Tensor, Labels]:
    """Cuts a window out of an image, varies its colours and stretches it to a size.

    Parts of the window outside the image are filled with `FILL`. The window is rounded
    to whole pixels of image and result, and boxes are moved by the rounded window.

    Args:
        image: uint8 [H, W, C].
        labels: objects of the image.
        window: float32 [4], relative to the image; may extend beyond it.
        size: height and width of the result.
        seed: two integers, [2], that decide the colours.

    Returns:
        uint8 [*size, C], and the objects whose centre lies in it.
    """
    real = tf.cast(tf.shape(image)[:2], tf.float32)
    wanted = tf.constant(size, tf.float32)
    low, high = window[:2] * real, window[2:] * real
    first = tf.clip_by_value(tf.round(low), 0.0, real - 1.0)
    last = tf.clip_by_value(tf.round(high), first + 1.0, real)
    scale = wanted / (high - low)
    start = tf.clip_by_value(tf.round((first - low) * scale), 0.0, wanted - 1.0)
    end = tf.clip_by_value(tf.round((last - low) * scale), start + 1.0, wanted)

    begin, stop = tf.cast(start, tf.int32), tf.cast(end, tf.int32)
    cut_out = cut(image, tf.cast(tf.concat([first, last - first], 0), tf.int32))
    part = resize(cut_out, stop - begin)
    part = tf.cast(vary_colours(part, seed), tf.float32) - fill_of(image)
    around = tf.stack([begin, tf.constant(size) - stop], axis=1)
    padded = tf.pad(part, tf.concat([around, [[0, 0]]], 0)) + fill_of(image)
    result = tf.cast(tf.round(padded), tf.uint8)

    def moved(points: tf.Tensor) -> tf.Tensor:
        inside = (points * real - first) / (last - first)
        return (inside * (end - start) + start) / wanted

    boxes = tf.concat([moved(labels["boxes"][:, p : p + 2]) for p in (0, 2)], -1)
    return tf.ensure_shape(result, [*size, image.shape[-1]]), inside(labels, boxes)


def fill_of(image: tf.Tensor) -> tf.Tensor:
    """Returns `FILL`, or its mean for grey images: float32 [C]."""
    colour = tf.constant(FILL)
    return colour if image.shape[-1] == 3 else tf.round(tf.reduce_mean(colour))[None]


def inside(labels: Labels, boxes: tf.Tensor) -> Labels:
    """Returns objects with their new boxes, clipped to the image.

    Objects whose centre is outside the image become padding; at least half of each side
    of the others remains.

    Args:
        labels: the objects before the change.
        boxes: their new boxes, float32 [M, 4] as (ymin, xmin, ymax, xmax) relative to
            the new image.
    """
    edge = tf.constant([[0.0, 0.0, 1.0, 1.0]])
    kept = holds_centers(edge, boxes)[0] & (labels["classes"] >= 0)
    return {
        "boxes": tf.where(kept[:, None], tf.clip_by_value(boxes, 0.0, 1.0), 0.0),
        "classes": tf.where(kept, labels["classes"], -1),
        "difficult": labels["difficult"] & kept,
    }


def mirror(
    image: tf.Tensor, labels: Labels, seed: tf.Tensor
) -> tuple[tf.Tensor, Labels]:
    """Mirrors an image and its boxes left to right, with probability 1/2.

    Args:
        image: [H, W, C].
        labels: its objects, as for `vary_ssd`.
        seed: two integers, [2].
    """
    turned = tf.random.stateless_uniform([], seed) < 0.5
    top, left, bottom, right = tf.unstack(labels["boxes"], axis=-1)
    boxes = tf.stack([top, 1.0 - right, bottom, 1.0 - left], -1)
    boxes = tf.where((labels["classes"] >= 0)[:, None], boxes, labels["boxes"])
    other = {**labels, "boxes": tf.where(turned, boxes, labels["boxes"])}
    return tf.where(turned, image[:, ::-1], image), other


def vary_colours(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Varies brightness, contrast, saturation, hue and the order of channels.

    Each with probability 1/2: brightness by +-32 of 255; contrast by a factor of 0.5 to
    1.5, before or after saturation and hue; saturation by a factor of 0.5 to 1.5; hue
    by +-18 degrees; one of the six orders of channels. Grey images only get the first
    two.

    Args:
        image: uint8 [H, W, C].
        seed: two integers, [2].

    Returns:
        uint8 [H, W, C].
    """
    seeds = tf.unstack(tf.random.split(seed, 3))
    does = tf.random.stateless_uniform([6], seeds[0]) < 0.5
    draws = tf.random.stateless_uniform([4], seeds[1])
    pixels = tf.cast(image, tf.float32) / 255.0
    pixels += tf.where(does[0], _between(draws[0], (-BRIGHTNESS, BRIGHTNESS)), 0.0)
    contrast = tf.where(does[1], _between(draws[1], CONTRAST), 1.0)
    early = does[2]
    pixels = _limited(_limited(pixels) * tf.where(early, contrast, 1.0))
    if image.shape[-1] == 3:
        more = tf.where(does[3], _between(draws[2], SATURATION), 1.0)
        turn = tf.where(does[4], _between(draws[3], (-HUE, HUE)), 0.0)
        pixels = tf.image.adjust_hue(tf.image.adjust_saturation(pixels, more), turn)
    pixels = _limited(pixels * tf.where(early, 1.0, contrast))
    if image.shape[-1] == 3:
        order = tf.random.experimental.stateless_shuffle(tf.range(3), seeds[2])
        pixels = tf.gather(pixels, tf.where(does[5], order, tf.range(3)), axis=-1)
    return tf.cast(tf.round(255.0 * pixels), tf.uint8)


def _between(draw: tf.Tensor, ends: tuple[float, float]) -> tf.Tensor:
    return ends[0] + (ends[1] - ends[0]) * draw


def _limited(pixels: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(pixels, 0.0, 1.0)
