"""Overlap of boxes, and offsets from default boxes; for NumPy arrays and tensors."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def to_centers(corners: Any) -> Any:
    """Converts corners of boxes to centre, height and width.

    Args:
        corners: [..., 4] as (ymin, xmin, ymax, xmax).

    Returns:
        [..., 4] as (cy, cx, h, w).
    """
    low, high = corners[..., :2], corners[..., 2:]
    return _math(corners).concatenate([(low + high) / 2, high - low], axis=-1)


def to_corners(centers: Any) -> Any:
    """Converts centre, height and width of boxes to corners.

    Args:
        centers: [..., 4] as (cy, cx, h, w).

    Returns:
        [..., 4] as (ymin, xmin, ymax, xmax).
    """
    middle, half = centers[..., :2], centers[..., 2:] / 2
    return _math(centers).concatenate([middle - half, middle + half], axis=-1)


def area(corners: Any) -> Any:
    """Returns the area of boxes: `max(ymax - ymin, 0) max(xmax - xmin, 0)`.

    Args:
        corners: [..., 4] as (ymin, xmin, ymax, xmax).

    Returns:
        [...], in units of the corners, squared.
    """
    sides = _math(corners).maximum(corners[..., 2:] - corners[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def iou(first: Any, second: Any) -> Any:
    """Returns the IoU of all pairs, `|A and B| / |A or B|`; 0 where both are empty.

    Args:
        first: [..., N, 4] as (ymin, xmin, ymax, xmax).
        second: [..., M, 4] as (ymin, xmin, ymax, xmax).

    Returns:
        [..., N, M], 0 to 1.
    """
    maths = _math(first, second)
    one, other = first[..., :, None, :], second[..., None, :, :]
    low = maths.maximum(one[..., :2], other[..., :2])
    high = maths.minimum(one[..., 2:], other[..., 2:])
    shared = area(maths.concatenate([low, maths.maximum(low, high)], axis=-1))
    union = area(first)[..., :, None] + area(second)[..., None, :] - shared
    positive = union > 0
    return maths.where(positive, shared / maths.where(positive, union, 1), 0)


def encode(corners: Any, centers: Any, variances: tuple[float, float]) -> Any:
    """Returns the offsets of boxes from their default boxes.

    `t = ((cy - cy_a) / (h_a v0), (cx - cx_a) / (w_a v0), ln(h / h_a) / v1,
    ln(w / w_a) / v1)`.

    Args:
        corners: [..., 4] as (ymin, xmin, ymax, xmax), of positive area.
        centers: [..., 4] of the default boxes as (cy, cx, h, w).
        variances: (v0, v1).

    Returns:
        [..., 4] as (dy, dx, dh, dw).

    Source: Liu et al., "SSD", ECCV 2016, eq. 2; the variances are its code's.
    """
    maths, own = _math(corners, centers), to_centers(corners)
    moved = (own[..., :2] - centers[..., :2]) / (centers[..., 2:] * variances[0])
    scaled = maths.log(own[..., 2:] / centers[..., 2:]) / variances[1]
    return maths.concatenate([moved, scaled], axis=-1)


def decode(offsets: Any, centers: Any, variances: tuple[float, float]) -> Any:
    """Returns the boxes that offsets stand for: the inverse of `encode`.

    Args:
        offsets: [..., 4] as (dy, dx, dh, dw).
        centers: [..., 4] of the default boxes as (cy, cx, h, w).
        variances: (v0, v1).

    Returns:
        [..., 4] as (ymin, xmin, ymax, xmax), not clipped.
    """
    maths = _math(offsets, centers)
    middle = offsets[..., :2] * variances[0] * centers[..., 2:] + centers[..., :2]
    sides = maths.exp(offsets[..., 2:] * variances[1]) * centers[..., 2:]
    return to_corners(maths.concatenate([middle, sides], axis=-1))


def _math(*arrays: Any) -> Any:
    """Returns the module for these arrays: NumPy, or `keras.ops` for tensors."""
    return np if all(isinstance(a, np.ndarray) for a in arrays) else keras.ops
