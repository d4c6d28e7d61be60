"""Two-stage detection: region proposals, and features of regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.detection.boxes import decode

# Offsets of anchors are not divided by variances (Ren et al., "Faster R-CNN", NeurIPS
# 2015, eq. 2).
NO_VARIANCES = (1.0, 1.0)
# Largest log of a side's growth by an offset, as in the authors' code; more might
# overflow.
MOST_GROWTH = math.log(1000.0 / 16.0)


def region_anchors(
    feature_shape: Sequence[int],
    image_shape: Sequence[int],
    stride: float = 16.0,
    scales: Sequence[float] = (8.0, 16.0, 32.0),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> np.ndarray:
    """Returns anchors of a region proposal network: one per position, ratio and scale.

    At ratio r and scale s: height `stride s sqrt(r)`, width `stride s / sqrt(r)`.

    Args:
        feature_shape: rows and columns of the feature map.
        image_shape: height and width of the image, in pixels.
        stride: pixels between two positions, and side of an anchor of scale 1.
        scales: sides of square anchors, in strides.
        ratios: heights over widths.

    Returns:
        float32 [rows * columns * anchors, 4] as (cy, cx, h, w), relative to the image,
        not clipped; ordered (y, x, ratio, scale).
    """
    sides = np.array(
        [
            (stride * s * math.sqrt(r), stride * s / math.sqrt(r))
            for r in ratios
            for s in scales
        ]
    )
    y, x = ((np.arange(n) + 0.5) * stride for n in feature_shape)
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)[:, :, None]
    shape = (*feature_shape, len(sides), 2)
    pair = np.broadcast_to(grid, shape), np.broadcast_to(sides, shape)
    boxes = np.concatenate(pair, axis=-1).reshape(-1, 4)
    return (boxes / np.tile(np.asarray(image_shape, float), 2)).astype(np.float32)


def propose(
    scores: Any,
    offsets: Any,
    anchors: np.ndarray,
    before: int = 6000,
    after: int = 300,
    iou_threshold: float = 0.7,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the regions of each image that most likely hold an object.

    The `before` anchors of highest score are moved by their offsets and clipped to the
    image. In order of falling score they are kept, except those whose IoU with a kept
    one exceeds `iou_threshold`, until there are `after`. No gradient passes through.

    Args:
        scores: objectness of each anchor, [B, N]; only the order matters.
        offsets: [B, N, 4] as (dy, dx, dh, dw), without variances.
        anchors: [N, 4] as (cy, cx, h, w).
        before: number of candidates per image.
        after: R, largest number of regions per image.
        iou_threshold: 0 to 1.

    Returns:
        (boxes float32 [B, R, 4] as (ymin, xmin, ymax, xmax), padded with zeros; their
        number in each image, int32 [B]).
    """
    count = min(before, len(anchors))
    scores = tf.cast(tf.stop_gradient(scores), tf.float32)
    offsets = tf.cast(tf.stop_gradient(offsets), tf.float32)
    values, places = tf.math.top_k(scores, count)
    moved = tf.gather(offsets, places, batch_dims=1)
    grown = tf.minimum(moved[..., 2:], MOST_GROWTH)
    moved = tf.concat([moved[..., :2], grown], axis=-1)
    boxes = decode(moved, tf.gather(tf.constant(anchors), places), NO_VARIANCES)
    boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    kept, counts = tf.image.non_max_suppression_padded(
        boxes,
        values,
        after,
        # This kernel also drops boxes whose IoU equals the threshold; `suppress` in
        # NumPy and TensorFlow's other kernels do not.
        _just_above(iou_threshold),
        pad_to_max_output_size=True,
        sorted_input=True,
        canonicalized_coordinates=True,
    )
    found = tf.gather(boxes, kept, batch_dims=1)
    real = tf.sequence_mask(counts, after)
    return tf.where(real[..., None], found, 0.0), counts


def _just_above(threshold: float) -> np.ndarray:
    """The next larger float32; above 0 the smallest one that TensorFlow keeps."""
    following = np.nextafter(np.float32(threshold), np.float32(2))
    return np.maximum(following, np.finfo(np.float32).tiny)


def roi_align(features: Any, boxes: Any, size: int = 7, samples: int = 2) -> tf.Tensor:
    """Returns features of regions: the mean of `samples^2` bilinear samples per bin.

    Sample i of n along a side from a to b, in a map of H pixels, is taken at
    `a H + (i + 1/2) (b - a) H / n - 1/2`, where 0 is the middle of the first pixel.
    Unlike in torchvision, samples outside the map are 0, not the value of the border.

    Args:
        features: [B, H, W, C].
        boxes: [B, R, 4] as (ymin, xmin, ymax, xmax), 0 to 1.
        size: bins along a side.
        samples: samples along a side of a bin.

    Returns:
        [B, R, size, size, C]; differentiable in the features, as often as needed.

    Source: He et al., "Mask R-CNN", ICCV 2017, section 3.
    """
    features = tf.convert_to_tensor(features)
    boxes = tf.cast(boxes, tf.float32)
    batch, regions = tf.shape(boxes)[0], tf.shape(boxes)[1]
    sides = tf.cast(tf.shape(features)[1:3], tf.float32)
    points = size * samples
    low, high = boxes[..., :2] * sides, boxes[..., 2:] * sides
    part = (high - low) / points
    span = tf.maximum(sides - 1, 1)
    ends = [(low - 0.5 + part / 2) / span, (high - 0.5 - part / 2) / span]
    crops = sampled(
        features,
        tf.reshape(tf.concat(ends, axis=-1), [-1, 4]),
        tf.repeat(tf.range(batch), regions),
        points,
    )
    pooled = tf.nn.avg_pool2d(crops, samples, samples, "VALID")
    shape = [batch, regions, size, size, features.shape[-1]]
    return tf.reshape(pooled, shape)


def sampled(features: Any, boxes: Any, images: Any, points: int) -> tf.Tensor:
    """`tf.image.crop_and_resize`, which can be differentiated twice in the features.

    TensorFlow defines no second derivative, which training on attribution maps needs.
    The operation is linear in the features, so the gradient of its gradient is the
    operation itself.

    Args:
        features: [B, H, W, C].
        boxes: [n, 4] as (ymin, xmin, ymax, xmax), where 1 is the last pixel; no
            gradient reaches them.
        images: image of each box, int32 [n].
        points: samples along a side.

    Returns:
        float32 [n, points, points, C].
    """
    boxes = tf.stop_gradient(boxes)

    def crop(image: tf.Tensor) -> tf.Tensor:
        return tf.image.crop_and_resize(image, boxes, images, [points, points])

    @tf.custom_gradient
    def spread(gradient: tf.Tensor) -> Any:
        shape, kind = tf.shape(features), features.dtype
        whole = tf.raw_ops.CropAndResizeGradImage(
            grads=gradient, boxes=boxes, box_ind=images, image_size=shape, T=kind
        )
        return whole, crop

    return tf.custom_gradient(lambda image: (crop(image), spread))(features)
