"""Grad-CAM attribution: maps, their l_p targets, and their rank."""

from gmpq_tf.attribution.grad_cam import (
    are_classes,
    attribution_map,
    grad_cam,
    labels_to_boxes,
    labels_to_classes,
    labels_to_objects,
)
from gmpq_tf.attribution.head import split_head
from gmpq_tf.attribution.rank import AttributionRankDistance, rank_distance
from gmpq_tf.attribution.share import batch_size, drawn_images
from gmpq_tf.attribution.target import (
    capacity_exponent,
    generalization_risk,
    resize_maps,
)

__all__ = [
    "AttributionRankDistance",
    "are_classes",
    "attribution_map",
    "batch_size",
    "capacity_exponent",
    "drawn_images",
    "generalization_risk",
    "grad_cam",
    "labels_to_boxes",
    "labels_to_classes",
    "labels_to_objects",
    "rank_distance",
    "resize_maps",
    "split_head",
]
