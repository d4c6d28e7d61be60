"""The task of two-stage detectors: boxes, and a class for each, of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.detection import Detections
from gmpq_tf.detection.boxes import decode, iou, to_centers
from gmpq_tf.detection.region_detections import found_in_regions
from gmpq_tf.detection.region_layers import HEAD_VARIANCES, RegionSearch, split_rows
from gmpq_tf.detection.region_losses import (
    REGION_IOU,
    AnchorBoxLoss,
    AnchorScoreLoss,
    RegionLoss,
    anchor_targets,
    smooth_l1,
)
from gmpq_tf.task.box_task import BoxTask
from gmpq_tf.task.guidance import FOREGROUND, divergence
from gmpq_tf.task.kinds import TaskError
from gmpq_tf.task.outputs import outputs_of

OUTPUTS = ("objects", "rpn_boxes", "rpn_scores")


class RegionTask(BoxTask):
    """Boxes and their classes, in regions that a first stage proposes.

    Args:
        model: a functional model with the outputs that `faster_rcnn_resnet18` has.
        search: for its regions.

    Raises:
        TaskError: it has other outputs.
    """

    def __init__(self, model: keras.Model, search: RegionSearch) -> None:
        self.search, self.model, self.name = search, model, model.name
        self.encode = self.targets
        shapes = {o.name: o.shape for o in outputs_of(model)}
        wanted = {"rpn_boxes": (search.count, 4), "rpn_scores": (search.count, 1)}
        rest = {name: shape for name, shape in shapes.items() if name != "objects"}
        objects = shapes.get("objects", (0, 0))
        if rest != wanted or objects[0] != search.regions or (objects[-1] - 4) % 5:
            raise TaskError(
                "A two-stage detector must have the outputs rpn_scores, rpn_boxes and "
                f"objects of its {search.count} anchors and {search.regions} regions. "
                f"Received: model={model.name!r} with {shapes}. End it in "
                "RegionOutputs, as faster_rcnn_resnet18 does."
            )
        self.order = list(shapes)
        # Of each anchor whether it holds an object: regions may come in any order.
        self.deciding = self.order.index("rpn_scores")
        self.classes = (objects[-1] - 4) // 5 - 1

    def targets(self, labels: Any) -> dict[str, Any]:
        """Offsets and marks that the anchors are to have, and the objects."""
        return anchor_targets(labels, self.search)

    def loss(self) -> dict[str, keras.losses.Loss]:
        """Cross-entropy and smooth L1, of anchors and of regions."""
        return {
            "rpn_scores": AnchorScoreLoss(),
            "rpn_boxes": AnchorBoxLoss(),
            "objects": RegionLoss(),
        }

    def found(self, outputs: Mapping[str, Any]) -> Detections:
        """The objects that outputs by name say are in the images."""
        return found_in_regions(outputs["objects"])

    def guidance(
        self, targets: Sequence[Any], outputs: Sequence[Any], temperature: float
    ) -> Any:
        """How far a student is from its teacher: `region_gap`."""
        places = [self.order.index(name) for name in OUTPUTS]
        wanted, own = ([each[p] for p in places] for each in (targets, outputs))
        return tf.reduce_mean(region_gap(wanted, own, temperature))

    def divergence(self, outputs: Sequence[Any], targets: Sequence[Any]) -> Any:
        """How far each image's outputs are from the float model's, [B]: `region_gap`.

        Row by row they say nothing: regions may come in another order.
        """
        places = [self.order.index(name) for name in OUTPUTS]
        wanted, own = ([each[p] for p in places] for each in (targets, outputs))
        return region_gap(wanted, own, 1.0)


def region_gap(
    targets: Sequence[Any], outputs: Sequence[Any], temperature: float
) -> tf.Tensor:
    """Gap of a two-stage detector where its teacher sees objects.

    Of each image's anchors `mean_i (T^2 KL of two classes + smooth L1)` over those that
    hold an object for the teacher by 0.1 or more. Of the student's regions the same
    over those that overlap by half a region in which the teacher sees one (a background
    below 0.9), of its classes and of the offsets to its boxes.

    Args:
        targets: of the teacher: (objects [B, R, 4 + 5 K], rpn_boxes [B, N, 4],
            rpn_scores [B, N, 1]).
        outputs: of the student, likewise.
        temperature: `T > 0`.

    Returns:
        [B], float32; 0 where the teacher sees nothing.
    """
    objects, offsets, scores = (tf.cast(z, tf.float32) for z in targets)
    own_objects, own_offsets, own_scores = (tf.cast(z, tf.float32) for z in outputs)
    pairs = [tf.concat([tf.zeros_like(z), z], -1) for z in (scores, own_scores)]
    anchors = _mean_where(
        tf.sigmoid(scores[..., 0]) > FOREGROUND,
        temperature**2 * divergence(*(z / temperature for z in pairs))
        + tf.reduce_sum(smooth_l1(offsets - own_offsets, 1.0), axis=-1),
    )
    corners, logits, _ = split_rows(objects)
    own_corners, own_logits, moved = split_rows(own_objects)
    overlap = iou(tf.stop_gradient(own_corners), corners)
    best = tf.argmax(overlap, axis=-1, output_type=tf.int32)
    wanted = tf.gather(logits, best, batch_dims=1)
    seen = 1 - tf.nn.softmax(wanted)[..., 0] > FOREGROUND
    near = tf.reduce_max(overlap, axis=-1) >= REGION_IOU
    boxes = tf.gather(_boxes(objects), best, batch_dims=1)
    own_boxes = _moved(own_corners, moved)
    # In units of the offsets, so that large and small boxes count alike.
    sides = tf.tile(tf.maximum(to_centers(own_corners)[..., 2:], 1e-3), [1, 1, 2])
    gap = (boxes - own_boxes) / (HEAD_VARIANCES[0] * sides[..., None, :])
    shares = tf.nn.softmax(wanted)
    distance = tf.reduce_sum(smooth_l1(gap, 1.0), axis=-1)
    regions = _mean_where(
        seen & near,
        temperature**2 * divergence(wanted / temperature, own_logits / temperature)
        + tf.reduce_sum((shares * distance)[..., 1:], axis=-1),
    )
    return anchors + regions


def _mean_where(seen: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    total = tf.reduce_sum(tf.where(seen, values, 0.0), axis=-1)
    number = tf.reduce_sum(tf.cast(seen, tf.float32), axis=-1)
    return total / tf.maximum(number, 1.0)


def _boxes(rows: Any) -> Any:
    corners, _, offsets = split_rows(rows)
    return _moved(corners, offsets)


def _moved(corners: Any, offsets: Any) -> Any:
    """Boxes of each class of each region, [B, R, K, 4]."""
    return decode(offsets, to_centers(corners)[..., None, :], HEAD_VARIANCES)
