"""The layers of a two-stage detector that are computed in float, between two files.

`RegionProposal` chooses regions of an image, `RegionAlign` cuts their features out of
the feature map, each region as an example of its own, and `RegionOutputs` joins the
corners of each region with the scores and offsets that the head computes for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.detection.default_boxes import BoxError
from gmpq_tf.detection.default_boxes_layer import default_boxes_of
from gmpq_tf.detection.regions import propose, region_anchors, roi_align

# The head's offsets are (dy, dx, dh, dw) divided by these: centres, then sides.
HEAD_VARIANCES = (0.1, 0.2)


@dataclasses.dataclass(frozen=True)
class RegionSearch:
    """Which regions of an image the second stage of a detector looks at.

    Regions are anchors moved by predicted offsets. There is one anchor at each position
    of the feature map for each scale and ratio.

    Args:
        feature_shape: rows and columns of the feature map.
        image_shape: height and width of the image, in pixels.
        stride: pixels between two positions of the map, above 0.
        scales: sides of square anchors, in strides, each above 0.
        ratios: heights over widths, each above 0.
        before: number of candidates per image, the anchors of highest score; at least
            `regions`.
        regions: R, number of regions per image.
        iou_threshold: regions whose IoU with a better one is larger are dropped, 0 to
            1.

    Raises:
        BoxError: a number is out of range.

    Source: Ren et al., "Faster R-CNN", NeurIPS 2015, section 3.1 and 3.3.
    """

    feature_shape: Sequence[int]
    image_shape: Sequence[int]
    stride: float = 16.0
    scales: Sequence[float] = (8.0, 16.0, 32.0)
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    before: int = 6000
    regions: int = 300
    iou_threshold: float = 0.7

    def __post_init__(self) -> None:
        for name in ("feature_shape", "image_shape", "scales", "ratios"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        shapes = (*self.feature_shape, *self.image_shape)
        above = (*shapes, *self.scales, *self.ratios, self.stride, self.regions)
        pairs = len(self.feature_shape) == len(self.image_shape) == 2
        counted = bool(self.scales and self.ratios) and self.before >= self.regions
        if not (pairs and counted and all(number > 0 for number in above)):
            raise BoxError(
                "Regions need a map and an image of two sides, scales and ratios above "
                "0, and no fewer candidates than regions. "
                f"Received: {self}. Leave out what need not be another."
            )
        if not 0 <= self.iou_threshold <= 1:
            raise BoxError(
                "iou_threshold must be 0 to 1. "
                f"Received: iou_threshold={self.iou_threshold!r}. Faster R-CNN has 0.7."
            )

    @property
    def anchors_per_place(self) -> int:
        """Number of anchors at each position of the map."""
        return len(self.scales) * len(self.ratios)

    @property
    def count(self) -> int:
        """Number of anchors N."""
        rows, columns = self.feature_shape
        return rows * columns * self.anchors_per_place

    def centers(self) -> np.ndarray:
        """The anchors as (cy, cx, h, w), relative to the image: float32 [N, 4].

        They are not clipped; ordered (row, column, ratio, scale).
        """
        shapes = (self.feature_shape, self.image_shape)
        return region_anchors(*shapes, self.stride, self.scales, self.ratios)

    def to_config(self) -> dict[str, Any]:
        """The fields as plain JSON values, for `from_config`."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RegionSearch:
        """The search that `to_config` described."""
        return cls(**config)


@keras.saving.register_keras_serializable("gmpq_tf")
class RegionProposal(keras.layers.Layer):
    """The regions that most likely hold an object: see `regions.propose`.

    Called with scores [B, N, 1] (logits, of which only the order matters) and offsets
    [B, N, 4] of the anchors, it returns corners [B, R, 4] as (ymin, xmin, ymax, xmax),
    0 to 1, padded with zeros. No gradient passes through.

    Args:
        search: a `RegionSearch`, or its configuration.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        BoxError: at the first call, if there are not N scores and N offsets.
    """

    def __init__(self, search: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(search, RegionSearch):
            search = RegionSearch.from_config(search)
        self.search, self._centers = search, search.centers()

    def build(self, scores_shape: Any, offsets_shape: Any) -> None:
        """Checks that there is one score and one row of offsets for each anchor.

        Raises:
            BoxError: their numbers differ from the number of anchors.
        """
        count = self.search.count
        wanted = [(count, 1), (count, 4)]
        given = [tuple(scores_shape[1:]), tuple(offsets_shape[1:])]
        if given != wanted:
            raise BoxError(
                "A region proposal needs a score and four offsets for each anchor: "
                f"{wanted}. Received: {given}. Make the anchors for the feature map."
            )

    def call(self, scores: Any, offsets: Any) -> Any:
        own = self.search
        limits = (own.before, own.regions, own.iou_threshold)
        return propose(scores[..., 0], offsets, self._centers, *limits)[0]

    def compute_output_shape(self, scores_shape: Any, offsets_shape: Any) -> Any:
        return (scores_shape[0], self.search.regions, 4)

    def get_config(self) -> dict:
        return {**super().get_config(), "search": self.search.to_config()}


@keras.saving.register_keras_serializable("gmpq_tf")
class RegionAlign(keras.layers.Layer):
    """Features of each region, as an example of its own: see `regions.roi_align`.

    Called with a feature map [B, H, W, C] and corners [B, R, 4] from `RegionProposal`,
    it returns [B R, size, size, C], the regions of an image one after the other.

    Args:
        regions: R, number of regions per image.
        size: bins along a side of a region.
        samples: samples along a side of a bin.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, regions: int, size: int = 7, samples: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.regions, self.size, self.samples = regions, size, samples

    @property
    def examples_per_image(self) -> int:
        """Examples that the following layers compute per image; used by costs."""
        return self.regions

    def call(self, features: Any, corners: Any) -> Any:
        aligned = roi_align(features, corners, self.size, self.samples)
        return tf.reshape(aligned, [-1, *aligned.shape[2:]])

    def compute_output_shape(self, features_shape: Any, corners_shape: Any) -> Any:
        batch = features_shape[0]
        count = None if batch is None else batch * self.regions
        return (count, self.size, self.size, features_shape[-1])

    def get_config(self) -> dict:
        own = {n: getattr(self, n) for n in ("regions", "size", "samples")}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("gmpq_tf")
class RegionOutputs(keras.layers.Layer):
    """Joins corners, scores and offsets of each region in one row.

    Called with corners [B, R, 4], scores [B R, classes + 1] (logits, background first)
    and offsets [B R, 4 (classes + 1)], divided by `HEAD_VARIANCES`, it returns them as
    [B, R, 4 + 5 (classes + 1)], in this order; `split_rows` separates them again. They
    are one tensor because a Keras loss gets one output, and `RegionLoss` needs corners
    to find the object of each region.

    Args:
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def call(self, corners: Any, scores: Any, offsets: Any) -> Any:
        regions = corners.shape[1]
        rows = [tf.reshape(x, [-1, regions, x.shape[-1]]) for x in (scores, offsets)]
        return tf.concat([tf.stop_gradient(corners), *rows], axis=-1)

    def compute_output_shape(
        self, corners_shape: Any, scores_shape: Any, offsets_shape: Any
    ) -> Any:
        width = 4 + scores_shape[-1] + offsets_shape[-1]
        return (corners_shape[0], corners_shape[1], width)


def region_search_of(model: Any) -> RegionSearch | None:
    """The search for regions of a two-stage detector.

    Args:
        model: a Keras model; its nested models are searched too.

    Returns:
        The search of its `RegionProposal`; None if the model has no such layer.
    """
    for layer in getattr(model, "layers", ()):
        if isinstance(layer, RegionProposal):
            return layer.search
        if (found := region_search_of(layer)) is not None:
            return found
    return None


def is_detector(model: Any) -> bool:
    """Whether a model is a detector: has default boxes or proposes regions.

    Args:
        model: a Keras model; its nested models are searched too.
    """
    return default_boxes_of(model) is not None or region_search_of(model) is not None


def split_rows(rows: Any) -> tuple[Any, Any, Any]:
    """Separates what `RegionOutputs` has joined.

    Args:
        rows: [B, R, 4 + 5 K], tensor or array; K is the number of classes, background
            included.

    Returns:
        (corners [B, R, 4], scores [B, R, K], offsets [B, R, K, 4]), tensors or arrays
        as `rows`.
    """
    classes = (rows.shape[-1] - 4) // 5
    corners, scores = rows[..., :4], rows[..., 4 : 4 + classes]
    offsets = rows[..., 4 + classes :]
    if isinstance(rows, np.ndarray):
        return corners, scores, offsets.reshape(*rows.shape[:2], classes, 4)
    shape = [-1, rows.shape[1], classes, 4]
    return corners, scores, tf.reshape(offsets, shape)
