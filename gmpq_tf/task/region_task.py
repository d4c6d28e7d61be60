"""The task of two-stage detectors: boxes, and a class for each, from regions."""

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
    """The task of detectors whose first stage proposes regions of the image.

    Args:
        model: a functional model with the outputs of `faster_rcnn_resnet18`: objects
            [B, R, 4 + 5 (classes + 1)], rpn_boxes [B, N, 4] and rpn_scores [B, N, 1].
        search: anchors and number of regions of the model.

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
        # Student and float model are compared by which anchors hold an object: their
        # regions may come in another order.
        self.deciding = self.order.index("rpn_scores")
        self.classes = (objects[-1] - 4) // 5 - 1

    def targets(self, labels: Any) -> dict[str, Any]:
        """Targets of anchors and objects of the images; see `anchor_targets`."""
        return anchor_targets(labels, self.search)

    def loss(self) -> dict[str, keras.losses.Loss]:
        """Losses by output: cross-entropy and smooth L1 of anchors and of regions."""
        return {
            "rpn_scores": AnchorScoreLoss(),
            "rpn_boxes": AnchorBoxLoss(),
            "objects": RegionLoss(),
        }

    def found(self, outputs: Mapping[str, Any]) -> Detections:
        """The objects that `outputs["objects"]` finds in the images."""
        return found_in_regions(outputs["objects"])

    def guidance(
        self, targets: Sequence[Any], outputs: Sequence[Any], temperature: float
    ) -> Any:
        """Distillation loss of a student: mean of `region_gap`, a scalar."""
        places = [self.order.index(name) for name in OUTPUTS]
        wanted, own = ([each[p] for p in places] for each in (targets, outputs))
        return tf.reduce_mean(region_gap(wanted, own, temperature))

    def divergence(self, outputs: Sequence[Any], targets: Sequence[Any]) -> Any:
        """Distance of each image's outputs from the float model's: `region_gap`, [B].

        Rows of the outputs cannot be compared one by one, because regions may come in
        another order.
        """
        places = [self.order.index(name) for name in OUTPUTS]
        wanted, own = ([each[p] for p in places] for each in (targets, outputs))
        return region_gap(wanted, own, 1.0)


def region_gap(
    targets: Sequence[Any], outputs: Sequence[Any], temperature: float
) -> tf.Tensor:
    """Distance of a two-stage detector from its teacher where the teacher sees objects.

    It is the sum of two means of `T^2 KL + smooth L1`. The first is over the anchors to
    which the teacher gives an object a probability above 0.1: KL of the two classes,
    smooth L1 of the offsets. The second is over the student's regions whose best
    overlapping region of the teacher has an IoU of 0.5 or more and a background
    probability below 0.9: KL of the classes, smooth L1 of the boxes of each class in
    units of the offsets, weighted by the teacher's probabilities.

    Args:
        targets: outputs of the teacher: (objects [B, R, 4 + 5 K], rpn_boxes [B, N, 4],
            rpn_scores [B, N, 1]); K is the number of classes, background included.
        outputs: outputs of the student, in the same form.
        temperature: `T > 0`.

    Returns:
        float32 [B]; 0 where the teacher sees nothing.
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
