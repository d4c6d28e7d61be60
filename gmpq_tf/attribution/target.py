"""The target of the quantized network's attribution, and the generalization risk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from gmpq_tf.attribution.grad_cam import wide
from gmpq_tf.bits import LayerPair

_EPSILON = 1e-12
# Maps that are nowhere above this count as zero; above it the reciprocal stays finite.
_FAINT = 1e-30


def capacity_exponent(
    expected_bits: Sequence[LayerPair | tuple[tf.Tensor, tf.Tensor]],
    weight_capacity: float = 4.0,
    activation_capacity: float = 6.0,
) -> tf.Tensor:
    """`p = (1/L) sum_k (Q_w0 / E[w bits]_k) (Q_a0 / E[a bits]_k)` (eq. 8).

    Args:
        expected_bits: expected bits of each layer's weights and activations, scalars.
        weight_capacity: `Q_w0`, bits.
        activation_capacity: `Q_a0`, bits.

    Returns:
        Scalar; larger for hypernets of lower capacity, whose target then concentrates
        on the brightest pixels.
    """
    weights, activations = map(tf.stack, zip(*expected_bits, strict=True))
    terms = (weight_capacity / weights) * (activation_capacity / activations)
    return tf.reduce_mean(terms)


def normalized(maps: tf.Tensor, p: tf.Tensor | float = 1.0) -> tf.Tensor:
    """`M^p / sum_ij M^p` of each map, whatever its scale.

    A map that is nowhere above 1e-30 becomes zero, with a gradient of zero; one that
    holds NaN or infinity becomes NaN.

    Args:
        maps: non-negative, [B, H, W]; narrow floats are computed in float32.
        p: positive exponent, a scalar.

    Returns:
        [B, H, W], each map summing to 1 (or 0), in float32 at least.
    """
    maps = wide(maps)
    # Not differentiated: the result does not depend on it, and its gradient would
    # square it and overflow.
    largest = tf.stop_gradient(tf.reduce_max(maps, axis=(1, 2), keepdims=True))
    bright = tf.cast(largest >= _FAINT, maps.dtype)
    scaled = maps / (largest * bright + (1 - bright))
    # For p < 1 the gradient of x^p is infinite at 0, so zeros are raised to a floor
    # here and set to 0 again below.
    powered = tf.pow(tf.maximum(scaled, _EPSILON), tf.cast(p, maps.dtype))
    # `scaled * 0.0` and `* bright`, unlike constant zeros, let NaN through.
    powered = tf.where(scaled > 0, powered, scaled * 0.0) * bright
    total = tf.reduce_sum(powered, axis=(1, 2), keepdims=True)
    return powered / tf.maximum(total, _EPSILON)


def top_pixels(maps: tf.Tensor, k: int) -> tf.Tensor:
    """1 at the k highest pixels of each map, 0 elsewhere; [B, H, W].

    Ties go to the earlier pixel, so that exactly k are chosen (all of them where the
    map has k or fewer).
    """
    height, width = maps.shape[1], maps.shape[2]
    if k >= height * width:
        return tf.ones_like(maps)
    _, indices = tf.math.top_k(tf.reshape(maps, [-1, height * width]), k)
    images = tf.repeat(tf.range(tf.shape(indices)[0]), k)
    places = tf.stack([images, tf.reshape(indices, [-1])], axis=1)
    ones = tf.ones(tf.shape(places)[:1], maps.dtype)
    chosen = tf.scatter_nd(places, ones, [tf.shape(indices)[0], height * width])
    return tf.reshape(chosen, [-1, height, width])


def generalization_risk(
    student_maps: tf.Tensor, teacher_maps: tf.Tensor, p: tf.Tensor, top_k: int = 1000
) -> tf.Tensor:
    """`R_G = sum_ij (M_q,ij - M_f,ij^p / sum M_f^p)^2`, mean over the batch.

    Only the `top_k` pixels highest in the teacher's map count (section 4.1). The
    student's map is normalized to the sum 1 like its target, since the Z of eq. 3
    leaves its scale free. An image whose teacher map is all zero contributes 0; one
    whose student map is all zero contributes its squared target, without a gradient. A
    batch without images has the risk 0. Unlike the official code, which compares
    l2-normalized maps of the predicted class over all pixels, this follows the paper.

    Args:
        student_maps: M_q, [B, H, W], non-negative.
        teacher_maps: M_f, same shape; treated as constant.
        p: exponent of the target, scalar; treated as constant.
        top_k: number of pixels that count.

    Returns:
        Scalar >= 0.
    """
    teacher_maps, p = tf.stop_gradient(teacher_maps), tf.stop_gradient(p)
    target = normalized(teacher_maps, p)
    seen = tf.reduce_sum(target, axis=(1, 2), keepdims=True)
    gap = tf.square(normalized(student_maps) - target) * seen
    gap *= tf.cast(top_pixels(teacher_maps, top_k), gap.dtype)
    images = tf.cast(tf.maximum(tf.shape(gap)[0], 1), gap.dtype)
    return tf.reduce_sum(gap) / images


def resize_maps(maps: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Bilinear resize, half-pixel centres, written as two matrix products.

    The values are those of `tf.image.resize`, which XLA cannot compile on every device.

    Args:
        maps: [B, h, w], float.
        height: height of the result, in pixels.
        width: width of the result, in pixels.

    Returns:
        [B, height, width].
    """
    if (maps.shape[1], maps.shape[2]) == (height, width):
        return maps
    rows = tf.constant(_interpolation(maps.shape[1], height), maps.dtype)
    columns = tf.constant(_interpolation(maps.shape[2], width), maps.dtype)
    return tf.einsum("hi,bij,wj->bhw", rows, maps, columns)


def _interpolation(source: int, target: int) -> np.ndarray:
    """Matrix [target, source] that interpolates linearly between pixel centres."""
    centers = (np.arange(target) + 0.5) * source / target - 0.5
    centers = np.clip(centers, 0, source - 1)
    low = np.floor(centers).astype(int)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros([target, source])
    matrix[np.arange(target), low] += 1 - (centers - low)
    matrix[np.arange(target), high] += centers - low
    return matrix
