"""Two-stage detectors (Ren et al., "Faster R-CNN", NeurIPS 2015, arXiv:1506.01497).

A detector is one functional model, trained by a loss for each output. Its outputs are
`{"rpn_scores": [batch, N, 1], "rpn_boxes": [batch, N, 4], "objects": [batch, R, 4 +
5 (classes + 1)]}` for N anchors and R regions; `gmpq_tf.detection` says what they mean.
Layers of the backbone have the same names as in the classifier, so that a policy of the
classifier fits the detector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from gmpq_tf.detection.region_layers import (
    RegionAlign,
    RegionOutputs,
    RegionProposal,
    RegionSearch,
)
from gmpq_tf.models.blocks import relu
from gmpq_tf.models.resnet import resnet18_features, resnet18_last_stage

_RPN_FILTERS = 512
# Anchors and regions of photographs (600 x 1000), and of images smaller than this.
_PHOTOGRAPH = 400
_SCALES, _REGIONS = (8.0, 16.0, 32.0), 300
_SMALL_SIDES, _SMALL_REGIONS = (0.07, 0.14, 0.28, 0.56), 48
_SMALL_STDDEV, _SMALLER_STDDEV = 0.01, 0.001  # of the authors' code


def faster_rcnn_resnet18(
    input_shape: tuple[int, int, int],
    num_classes: int,
    stem: str = "auto",
    alpha: float = 1.0,
    scales: Sequence[float] | None = None,
    regions: int | None = None,
) -> keras.Model:
    """Builds Faster R-CNN on ResNet-18, whose fourth stage classifies regions ("C4").

    Unlike in the model whose cost GMPQ's paper counts, each anchor has one score
    (object or not), not two.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of classes, without background.
        stem: As for `resnet18`.
        alpha: Width multiplier, above 0; ResNet-18's is 1.
        scales: Sides of square anchors, in strides of the feature map; None: those of
            the paper, or for images below 400 pixels four scales, the first 0.07 of the
            shorter side and each twice the one before.
        regions: Number of regions per image; None: 300, or 48 for images below 400
            pixels.
    """
    inputs = keras.Input(input_shape, name="image")
    features = resnet18_features(inputs, stem, alpha)[-1]
    search = _search(input_shape, tuple(features.shape[1:3]), scales, regions)
    filters = max(1, round(alpha * _RPN_FILTERS))
    x = layers.Conv2D(
        filters,
        3,
        padding="same",
        kernel_initializer=_normal(_SMALL_STDDEV),
        name="rpn_conv",
    )(features)
    x = relu(x, "rpn_relu")
    scores = _of_anchors(x, search, 1, "rpn_scores")
    offsets = _of_anchors(x, search, 4, "rpn_boxes")
    corners = RegionProposal(search, name="regions")(scores, offsets)
    y = RegionAlign(search.regions, name="roi_align")(features, corners)
    y = resnet18_last_stage(y, alpha)
    y = layers.GlobalAveragePooling2D(name="roi_pool")(y)
    classes = num_classes + 1
    roi_scores = _dense(y, classes, _SMALL_STDDEV, "roi_scores")
    roi_boxes = _dense(y, 4 * classes, _SMALLER_STDDEV, "roi_boxes")
    objects = RegionOutputs(name="objects")(corners, roi_scores, roi_boxes)
    outputs = {"rpn_scores": scores, "rpn_boxes": offsets, "objects": objects}
    return keras.Model(inputs, outputs, name="faster_rcnn_resnet18")


def _search(
    input_shape: tuple[int, int, int],
    feature_shape: tuple[int, int],
    scales: Sequence[float] | None,
    regions: int | None,
) -> RegionSearch:
    image_shape = input_shape[:2]
    # 16; 4 with a stem that does not shrink the image.
    stride = 2.0 ** round(math.log2(image_shape[0] / feature_shape[0]))
    small = min(image_shape) < _PHOTOGRAPH
    if scales is None and small:
        scales = [side * min(image_shape) / stride for side in _SMALL_SIDES]
    return RegionSearch(
        feature_shape,
        image_shape,
        stride,
        scales or _SCALES,
        regions=regions or (_SMALL_REGIONS if small else _REGIONS),
    )


def _of_anchors(x: Any, search: RegionSearch, width: int, name: str) -> Any:
    """`width` numbers for each anchor, [B, N, width], ordered (y, x, ratio, scale)."""
    y = layers.Conv2D(
        search.anchors_per_place * width,
        1,
        kernel_initializer=_normal(_SMALL_STDDEV),
        name=name,
    )(x)
    return layers.Reshape((-1, width), name=f"{name}_rows")(y)


def _dense(x: Any, units: int, stddev: float, name: str) -> Any:
    return layers.Dense(units, kernel_initializer=_normal(stddev), name=name)(x)


def _normal(stddev: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=stddev)
