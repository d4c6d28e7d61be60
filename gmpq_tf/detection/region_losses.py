"""The losses of a two-stage detector, for its anchors and for its regions.

Their sum is the loss of Ren et al., "Faster R-CNN", NeurIPS 2015, eq. 1, over anchors,
plus the same over regions. All weights are 1, and each term is divided by the number of
anchors or regions that were drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.detection.boxes import encode, iou, to_centers, to_corners
from gmpq_tf.detection.matching import match
from gmpq_tf.detection.region_layers import HEAD_VARIANCES, RegionSearch, split_rows
from gmpq_tf.detection.regions import NO_VARIANCES

DRAWN_ANCHORS, DRAWN_REGIONS = 256, 128  # largest numbers drawn per image
# Largest share of anchors (regions) with an object among those drawn.
ANCHOR_SHARE, REGION_SHARE = 0.5, 0.25
# Least IoU at which an anchor or a region is assigned an object, and the IoU below
# which an anchor is empty.
ANCHOR_IOU, ANCHOR_EMPTY, REGION_IOU = 0.7, 0.3, 0.5
ANCHOR_KNEE = 1 / 9  # of the smooth L1: 1 / sigma^2 of the authors' code, sigma = 3


@keras.saving.register_keras_serializable("gmpq_tf")
class AnchorScoreLoss(keras.losses.Loss):
    """Binary cross-entropy of anchors drawn at random.

    `(1 / n) sum_i BCE(sigmoid(s_i), l_i)` over the n anchors drawn in an image: up to
    `drawn / 2` with an object, and empty ones up to `drawn` in all; 0 if n is 0.

    Unlike in the authors' code the draw is seeded by the scores: it depends only on
    weights and images, so that interrupted and resumed training draws the same anchors.

    Args:
        drawn: largest number of anchors drawn per image.
        **kwargs: arguments of `keras.losses.Loss`.
    """

    def __init__(
        self,
        drawn: int = DRAWN_ANCHORS,
        name: str = "anchor_score_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.drawn = drawn

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each image, [B].

        Args:
            y_true: [B, N]: 1: with an object, 0: empty, -1: ignored.
            y_pred: logits [B, N, 1].
        """
        labels = tf.cast(y_true, tf.int32)
        logits = tf.cast(y_pred, tf.float32)[..., 0]
        found, empty = labels > 0, tf.equal(labels, 0)
        kept = draw(found, empty, self.drawn, ANCHOR_SHARE, logits)
        losses = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=tf.cast(found, tf.float32), logits=logits
        )
        return mean_of_drawn(losses, kept)

    def get_config(self) -> dict:
        return {**super().get_config(), "drawn": self.drawn}


@keras.saving.register_keras_serializable("gmpq_tf")
class AnchorBoxLoss(keras.losses.Loss):
    """Smooth L1 of the offsets of anchors with an object, over the number drawn.

    `(1 / n) sum_i sum_j h(t_ij - p_ij)` over the four offsets j of the anchors i with
    an object, with target offsets t and predicted offsets p; `h(d) = d^2 / (2 k)` up to
    `|d| = k = 1/9`, `|d| - k/2` above; n as for `AnchorScoreLoss`.

    Unlike in the authors' code no anchors are drawn. If an image has more anchors with
    an object than would be drawn, the sum over all of them is scaled down to the number
    drawn, which is the expectation over draws.

    Args:
        drawn: largest number of anchors drawn per image, as for `AnchorScoreLoss`.
        **kwargs: arguments of `keras.losses.Loss`.
    """

    def __init__(
        self, drawn: int = DRAWN_ANCHORS, name: str = "anchor_box_loss", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.drawn = drawn

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each image, [B].

        Args:
            y_true: [B, N, 5]: four offsets, and 1: with an object, 0: empty, -1:
                ignored.
            y_pred: offsets, [B, N, 4].
        """
        wanted, marks = tf.cast(y_true[..., :4], tf.float32), y_true[..., 4]
        found = tf.cast(marks > 0.5, tf.float32)
        empty = tf.cast(tf.abs(marks) < 0.5, tf.float32)
        gap = wanted - tf.cast(y_pred, tf.float32)
        losses = tf.reduce_sum(smooth_l1(gap, ANCHOR_KNEE), axis=-1)
        objects = tf.reduce_sum(found, axis=-1)
        taken = tf.minimum(objects, float(int(self.drawn * ANCHOR_SHARE)))
        others = tf.minimum(tf.reduce_sum(empty, axis=-1), self.drawn - taken)
        total = tf.reduce_sum(losses * found, axis=-1)
        # Share of the anchors with an object that would be drawn.
        share = taken / tf.maximum(objects, 1.0)
        return share * total / tf.maximum(taken + others, 1.0)

    def get_config(self) -> dict:
        return {**super().get_config(), "drawn": self.drawn}


@keras.saving.register_keras_serializable("gmpq_tf")
class RegionLoss(keras.losses.Loss):
    """Cross-entropy and smooth L1 of regions drawn at random.

    `(1 / n) sum_i (CE(s_i, c_i) + [c_i > 0] sum_j h(t_ij - p_i,c_i,j))` over the n
    regions drawn in an image, with scores s, class c (0: background), target offsets t,
    the predicted offsets p of that class, and `h(d) = d^2 / 2` up to `|d| = 1`,
    `|d| - 1/2` above. A region is assigned the object that it overlaps most, if the IoU
    is at least 0.5; else it is background. At most `drawn / 4` regions with an object
    are drawn.

    Unlike in the authors' code the objects themselves are not added to the regions,
    because labels do not reach the model. The draw is seeded as in `AnchorScoreLoss`.

    Args:
        drawn: largest number of regions drawn per image.
        **kwargs: arguments of `keras.losses.Loss`.
    """

    def __init__(
        self, drawn: int = DRAWN_REGIONS, name: str = "region_loss", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.drawn = drawn

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each image, [B].

        Args:
            y_true: [B, M, 5]: corners of objects, and class from 1, 0: padding.
            y_pred: [B, R, 4 + 5 (classes + 1)], see `RegionOutputs`.
        """
        corners, scores, offsets = split_rows(tf.cast(y_pred, tf.float32))
        corners = tf.stop_gradient(corners)
        objects = tf.cast(y_true, tf.float32)
        labels, wanted = region_targets(objects, corners)
        found, empty = labels > 0, tf.equal(labels, 0)
        kept = draw(found, empty, self.drawn, REGION_SHARE, scores[..., 0])
        classes = keras.losses.sparse_categorical_crossentropy(
            tf.maximum(labels, 0), scores, from_logits=True
        )
        own = tf.gather(offsets, tf.maximum(labels, 0), batch_dims=2)
        moved = tf.reduce_sum(smooth_l1(wanted - own, 1.0), axis=-1)
        moved = tf.where(found, moved, 0.0)
        return mean_of_drawn(classes + moved, kept)

    def get_config(self) -> dict:
        return {**super().get_config(), "drawn": self.drawn}


def region_targets(
    objects: tf.Tensor, corners: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Training targets of regions: a class for each, and offsets to its object.

    Args:
        objects: [B, M, 5]: corners, and class from 1, 0: padding.
        corners: corners of the regions, [B, R, 4]; regions without area are padding.

    Returns:
        (classes int32 [B, R]: from 1, 0: background, -1: padding; offsets [B, R, 4]
        divided by `HEAD_VARIANCES`, zeros where there is no object).
    """
    objects = tf.pad(objects, [[0, 0], [0, 1], [0, 0]])  # argmax needs at least one
    overlap = iou(corners, objects[..., :4])
    known = objects[..., 4] > 0
    overlap = tf.where(known[:, None], overlap, -1.0)
    best = tf.argmax(overlap, axis=-1, output_type=tf.int32)
    found = tf.reduce_max(overlap, axis=-1) >= REGION_IOU
    own = tf.gather(objects, best, batch_dims=1)
    real = tf.reduce_all(corners[..., 2:] > corners[..., :2], axis=-1)
    classes = tf.where(found, tf.cast(own[..., 4], tf.int32), 0)
    # A region without an object is its own target: its offsets are 0, and no logarithm
    # of 0 is taken.
    unit = tf.constant([0.0, 0.0, 1.0, 1.0])
    base = tf.where(real[..., None], corners, unit)
    goal = tf.where(found[..., None], own[..., :4], base)
    offsets = encode(goal, to_centers(base), HEAD_VARIANCES)
    return tf.where(real, classes, -1), offsets


def anchor_targets(
    labels: Mapping[str, tf.Tensor], search: RegionSearch
) -> dict[str, tf.Tensor]:
    """Training targets of a two-stage detector for a batch of images.

    An anchor is assigned the object that it overlaps most, if the IoU is at least 0.7
    or no anchor overlaps that object more. Anchors whose IoU is below 0.3 with every
    object are empty. All others are ignored, and also anchors that extend beyond the
    image.

    Args:
        labels: "boxes" [B, M, 4] as (ymin, xmin, ymax, xmax), and "classes" int [B, M]
            from 0, -1: padding. Difficult objects are treated as all others.
        search: the detector's `RegionSearch`, which has the anchors.

    Returns:
        "rpn_boxes" float32 [B, N, 5] and "rpn_scores" int32 [B, N], as the losses take
        them; "objects" float32 [B, M, 5]: corners, and class from 1, 0: padding.
    """
    centers = search.centers()
    corners = to_corners(centers)
    inside = (corners[:, :2] >= 0).all(-1) & (corners[:, 2:] <= 1).all(-1)
    weight = tf.constant(inside, tf.float32)  # 0 for anchors that leave the image

    def of_image(image: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        # One row of padding more, because `match` needs at least one object.
        boxes = tf.pad(tf.cast(image[0], tf.float32), [[0, 1], [0, 0]])
        classes = tf.pad(tf.cast(image[1], tf.int32), [[0, 1]], constant_values=-1)
        known = classes >= 0
        overlap = iou(boxes, tf.constant(corners)) * weight
        most = tf.reduce_max(tf.where(known[:, None], overlap, 0.0), axis=0)
        chosen = match(overlap, known, ANCHOR_IOU)
        found = chosen >= 0
        own = tf.gather(boxes, tf.maximum(chosen, 0))
        own = tf.where(found[:, None], own, corners)
        offsets = encode(own, tf.constant(centers), NO_VARIANCES)
        empty = inside & (most < ANCHOR_EMPTY)
        marks = tf.where(found, 1, tf.where(empty, 0, -1))
        offsets = tf.where(found[:, None], offsets, 0.0)
        rows = tf.concat([offsets, tf.cast(marks[:, None], tf.float32)], -1)
        return rows, marks

    boxes, marks = tf.map_fn(
        of_image,
        (labels["boxes"], labels["classes"]),
        fn_output_signature=(
            tf.TensorSpec([search.count, 5], tf.float32),
            tf.TensorSpec([search.count], tf.int32),
        ),
    )
    numbers = tf.cast(labels["classes"], tf.float32)[..., None] + 1
    objects = tf.concat([tf.cast(labels["boxes"], tf.float32), numbers], axis=-1)
    return {"rpn_boxes": boxes, "rpn_scores": marks, "objects": objects}


def draw(
    found: tf.Tensor, empty: tf.Tensor, count: int, share: float, seed: tf.Tensor
) -> tf.Tensor:
    """Draws some of each image's candidates at random, each at most once.

    Args:
        found: whether each candidate holds an object, bool [B, N].
        empty: whether each candidate holds none, bool [B, N].
        count: number of candidates drawn per image; fewer, if there are fewer.
        share: largest share of candidates with an object, 0 to 1; empty ones fill the
            rest.
        seed: floats of any shape whose bits seed the draw.

    Returns:
        Whether each candidate is drawn, bool [B, N].
    """
    # The seed is a plain sum and a sum weighted by position, both modulo 2^32, so that
    # the same scores in another order give another draw.
    bits = tf.bitcast(tf.cast(tf.stop_gradient(seed), tf.float32), tf.int32)
    bits = tf.reshape(bits, [-1])
    odd = tf.range(tf.size(bits)) * 2 + 1
    state = tf.stack([tf.reduce_sum(bits), tf.reduce_sum(bits * odd)])
    noise = tf.random.stateless_uniform(tf.shape(found), state)
    first = _first(noise, found, float(int(count * share)))
    taken = tf.reduce_sum(tf.cast(first, tf.float32), axis=-1, keepdims=True)
    return first | _first(noise, empty, count - taken)


def _first(noise: tf.Tensor, among: tf.Tensor, count: Any) -> tf.Tensor:
    """Marks the `count` [B, 1] candidates with the largest noise, bool [B, N].

    Candidates are those in `among`; if there are fewer than `count`, all are marked.
    """
    # All others get the noise -1, below the 0 to 1 of candidates. `argsort` twice gives
    # the rank of each.
    order = tf.argsort(tf.where(among, noise, -1.0), direction="DESCENDING")
    place = tf.cast(tf.argsort(order), tf.float32)
    return among & (place < count)


def mean_of_drawn(losses: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    """Mean of losses [B, N] where `kept` [B, N] is True: [B]; 0 where none is kept."""
    total = tf.reduce_sum(tf.where(kept, losses, 0.0), axis=-1)
    number = tf.reduce_sum(tf.cast(kept, tf.float32), axis=-1)
    return total / tf.maximum(number, 1.0)


def smooth_l1(gap: tf.Tensor, knee: float) -> tf.Tensor:
    """Elementwise `d^2 / (2 k)` up to `|d| = k` and `|d| - k/2` above, any shape."""
    size = tf.abs(gap)
    return tf.where(size < knee, size * size / (2 * knee), size - knee / 2)
