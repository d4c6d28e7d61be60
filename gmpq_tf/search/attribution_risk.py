"""The generalization risk: attribution maps compared with those of the float model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf import metric_names
from gmpq_tf.attribution import (
    AttributionRankDistance,
    batch_size,
    capacity_exponent,
    drawn_images,
    generalization_risk,
    grad_cam,
    labels_to_boxes,
    labels_to_classes,
    labels_to_objects,
    resize_maps,
    split_head,
)
from gmpq_tf.bits import LayerPair
from gmpq_tf.detection.region_layers import region_search_of
from gmpq_tf.graph import GraphError, read_graph
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.first_steps import MapCount
from gmpq_tf.search.risks import Risk, Step, taken
from gmpq_tf.transform.front import leading_layers, misplaced_layers, split_front
from gmpq_tf.transform.rewrite import flat_copy


class Generalization(Risk):
    """`R_G`: distance of the hypernet's attribution map from that of the float model.

    Owns the float model, frozen and in inference mode. Both models are split in three:
    random layers at the front, the backbone up to the feature map, and the head.

    Args:
        hypernet: from `build_hypernet`.
        model: the float model, without nested models; it becomes the teacher (a copy
            does, where the teacher computes in another type).
        config: the options of the risk.
        add_weight: makes variables, as `keras.Model.add_weight`; None: the risk is only
            measured, and needs none.
    """

    name = metric_names.GENERALIZATION_RISK
    of_image = True  # whether an image has a risk of its own

    def __init__(
        self,
        hypernet: keras.Model,
        model: keras.Model,
        config: RiskConfig,
        add_weight: Callable[..., keras.Variable] | None = None,
    ) -> None:
        self.config = config
        other = config.teacher_dtype != "float32"
        self.teacher = flat_copy(model, config.teacher_dtype) if other else model
        self.teacher.trainable = False
        front = _random_front(hypernet)
        self.student_parts = split_parts(hypernet, config.feature_layer, front)
        self.teacher_parts = split_parts(self.teacher, config.feature_layer, front)
        self.map_size = None
        rank = len(self.teacher_parts.backbone.outputs[0].shape)
        shapes = [t.shape for t in hypernet.inputs if len(t.shape) == rank]
        if config.map_size == "input" and shapes:  # maps of lines have one row
            self.map_size = (1, *shapes[0][1:-1])[-2:]
        self.independent_labels = False
        self.map_count: MapCount | None = MapCount()
        self.rank_metric: AttributionRankDistance | None = AttributionRankDistance()

    @property
    def num_scores(self) -> int:
        """Number of scores of the model: its classes, or 1 for a single logit.

        For a detector the scores of a box, background included.
        """
        width = int(self.student_parts.head.outputs[0].shape[-1])
        return (width - 4) // 5 if self.of_regions else width

    @property
    def of_boxes(self) -> bool:
        """Whether the model is a detector: boxes have classes, not images."""
        return len(self.student_parts.head.outputs[0].shape) == 3

    @property
    def of_regions(self) -> bool:
        """Whether the model is a detector of two stages."""
        return region_search_of(self.student_parts.head) is not None

    @property
    def feature_name(self) -> str:
        """Name of the layer that is attributed."""
        feature = self.teacher_parts.backbone.outputs[0]
        return feature._keras_history.operation.name

    def augmented(self, images: Any) -> Any:
        """A batch after the random layers at the front of the model, [B, ...]."""
        front = self.student_parts.front
        return images if front is None else front(images, training=True)

    def drawn(self, images: Any, step: Any) -> tf.Tensor | None:
        """Indices [A] of the images to attribute in step number `step`; None: all."""
        if self.config.attribution_share == 1:
            return None
        return drawn_images(batch_size(images), self.config.attribution_share, step)

    def forward(
        self, images: Any, labels: Any, drawn: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Output of the hypernet in training, and its maps [A, H, W].

        Args:
            images: what `augmented` returned.
            labels: as `fit` was given them.
            drawn: indices of the images that are attributed, integers [A]; None: all.
        """
        parts = self.student_parts
        feature = parts.backbone(images, training=True)
        maps, (_, output) = grad_cam(
            parts.head, feature, self.classes(labels), training=True
        )
        return output, self._resized(taken(maps, drawn))

    def teacher_maps(
        self, images: Any, labels: Any, drawn: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Maps of the float model, [A, H, W]; arguments as those of `forward`."""
        parts = self.teacher_parts
        images, classes = taken((images, self.classes(labels)), drawn)
        feature = parts.backbone(images, training=False)
        maps, _ = grad_cam(parts.head, feature, classes, training=False)
        assert self.map_count is not None
        self.map_count.update_state(maps, classes, self.num_scores)
        return tf.stop_gradient(self._resized(maps))

    def classes(self, labels: Any) -> tf.Tensor | None:
        """Classes to attribute, [B] or [B, C] as from `labels_to_classes`.

        None: the predicted classes. For a detector those of its default boxes, [B, N];
        for one of two stages the objects, [B, M, 5].

        Raises:
            ValueError: there are no labels, or they do not fit the model.
        """
        if self.config.attribution_class == "predicted":
            return None
        if self.of_regions:
            return labels_to_objects(labels)
        if self.of_boxes:
            count = self.student_parts.head.outputs[0].shape[1]
            return labels_to_boxes(labels, count)
        leaves = keras.tree.flatten(labels)
        if len(leaves) != 1 or leaves[0] is None:
            raise ValueError(
                "Attribution maps need the label of each image. "
                f"Received: y={type(labels).__name__} with {len(leaves)} parts. Pass "
                "labels, or search with attribution_class='predicted' or eta=0."
            )
        return labels_to_classes(leaves[0], self.num_scores, self.independent_labels)

    def weight(self, step: Step) -> float:
        return self.config.eta

    def value(self, step: Step) -> tf.Tensor:
        """R_G of the batch, a scalar."""
        p = self.exponent(step.branches.expected_bits())
        return self.distance(step.maps, step.teacher_maps, p)

    def exponent(self, bits: Sequence[LayerPair]) -> tf.Tensor:
        """The exponent p of the target, a scalar; `bits` are the expected bits."""
        return exponent(self.config, bits)

    def distance(
        self, student: tf.Tensor, teacher: tf.Tensor, p: tf.Tensor
    ) -> tf.Tensor:
        """R_G of maps, a scalar; see `generalization_risk`.

        Args:
            student: maps of the hypernet, [A, H, W].
            teacher: maps of the float model, [A, H, W].
            p: exponent of the target, a scalar.
        """
        return generalization_risk(student, teacher, p, self.config.top_k)

    def update(self, step: Step) -> None:
        """Adds the rank distance of the maps to the metric."""
        assert self.rank_metric is not None
        self.rank_metric.update_state(step.teacher_maps, step.maps)

    def _resized(self, maps: tf.Tensor) -> tf.Tensor:
        return maps if self.map_size is None else resize_maps(maps, *self.map_size)


def exponent(config: RiskConfig, bits: Sequence[LayerPair]) -> tf.Tensor:
    """The exponent p of the target: fixed, or eq. 8.

    Args:
        config: has p, or the capacities of eq. 8.
        bits: expected bits of each layer, scalars.
    """
    if config.p is not None:
        return tf.constant(config.p, tf.float32)
    return capacity_exponent(bits, config.weight_capacity, config.activation_capacity)


def split_parts(
    model: keras.Model, feature_layer: str | None, leading: Sequence[str] = ()
) -> SimpleNamespace:
    """`split_front` and `split_head` as a namespace: `front`, `backbone`, `head`."""
    front, _ = split_front(model, leading, model.outputs)
    backbone, head = split_head(model, feature_layer, leading)
    return SimpleNamespace(front=front, backbone=backbone, head=head)


def _random_front(model: keras.Model) -> list[str]:
    """Leading layers, if one is random; refuses random layers further back."""
    graph = read_graph(model)
    misplaced = misplaced_layers(graph)
    if misplaced:
        raise GraphError(
            "Layers that change images at random must stand before the first layer "
            "with weights, so that teacher and hypernet see the same image. "
            f"Received: {', '.join(misplaced)}. Move them to the front, or search "
            "with eta=0 (no attribution)."
        )
    return leading_layers(graph)
