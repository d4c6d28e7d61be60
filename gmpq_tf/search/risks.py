"""The risks that guide a search: what each weighs in a step, and its value.

A risk is an object with a `name`, a `weight(step)` and a `value(step)`, whose products
are added to the task loss (eq. 6). What it notes in the step is logged with them, and
`update(step)` is called once the gradients have been applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    labels_to_classes,
    resize_maps,
    split_head,
)
from gmpq_tf.bits import LayerPair
from gmpq_tf.cost_tables import CostTable
from gmpq_tf.graph import GraphError, read_graph
from gmpq_tf.limits import Limit
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.first_steps import MapCount
from gmpq_tf.search.importances import Importances
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.search.zeta import adapted_zeta, damped_zeta
from gmpq_tf.transform.front import leading_layers, misplaced_layers, split_front
from gmpq_tf.transform.rewrite import flat_copy


@dataclass
class Step:
    """What the risks of one training step are computed from.

    Args:
        images: what the hypernet sees, as the model takes it.
        labels: as `fit` was given them.
        branches: the importances.
        drawn: places of the images that are attributed, integers [A]; None: all.
        teacher_maps: of the float model, [A, H, W]; None without a teacher.
        maps: of the hypernet, [A, H, W]; None without a teacher.
        values: name of a risk -> its value, once it has been computed, a scalar.
        noted: name of another metric -> its value, likewise.
    """

    images: Any
    labels: Any
    branches: Importances
    drawn: tf.Tensor | None = None
    teacher_maps: tf.Tensor | None = None
    maps: tf.Tensor | None = None
    values: dict[str, tf.Tensor] = field(default_factory=dict)
    noted: dict[str, tf.Tensor] = field(default_factory=dict)


class Risk:
    """One summand of eq. 6 beside the task loss."""

    name: str

    def weight(self, step: Step) -> tf.Tensor | float:
        """What the value is multiplied with, a scalar without a gradient."""
        raise NotImplementedError

    def value(self, step: Step) -> tf.Tensor:
        """The risk, a scalar."""
        raise NotImplementedError

    def weighted(self, step: Step) -> tf.Tensor:
        """Weight times value, a scalar; the value is noted in the step."""
        weight, value = self.weight(step), self.value(step)
        step.values[self.name] = value
        return weight * value

    def update(self, step: Step) -> None:
        """Change the state of the risk; the gradients have been applied."""


class Complexity(Risk):
    """`R_C`: an expected cost (eq. 7) as a fraction of full precision.

    Args:
        problem: candidates and costs.
        table: of the cost.
        limit: which the weight follows; None: it stays.
        zeta: the weight, or where it starts.
        add_weight: makes the variable of it, as `keras.Model.add_weight`.
        suffix: of the metrics' names and of the variable's.
    """

    def __init__(
        self,
        problem: SearchProblem,
        table: CostTable,
        limit: Limit | None,
        zeta: float,
        add_weight: Callable[..., keras.Variable],
        suffix: str = "",
    ) -> None:
        self.problem, self.table, self.limit = problem, table, limit
        self.name = metric_names.COMPLEXITY_RISK + suffix
        self.metric = metric_names.ZETA + suffix
        self.scale = zeta or RiskConfig.zeta
        self.full = table.full or table.range(problem.candidates)[1]
        # Those of all budgets, this one among them.
        self.beside: tuple[Complexity, ...] = (self,)
        self.zeta = add_weight(
            name=self.metric,
            shape=(),
            initializer=keras.initializers.Constant(zeta),
            trainable=False,
            dtype="float32",
            aggregation="only_first_replica",  # all of them compute the same
        )

    def expected(self, step: Step) -> tf.Tensor:
        """Expected cost, its constant part included; a scalar."""
        name = metric_names.expected(self.table.resource)
        if name not in step.noted:
            step.noted[name] = self.problem.expected(self.table, step.branches)
        return step.noted[name]

    def value(self, step: Step) -> tf.Tensor:
        """Expected cost over that of full precision, a scalar."""
        return self.expected(step) / self.full

    def weight(self, step: Step) -> tf.Tensor:
        """Zeta of this step, a scalar; no gradient flows through its controller."""
        zeta = tf.convert_to_tensor(self.zeta)
        if self.limit is not None:
            searched = tf.stop_gradient(self._searched(step))
            zeta = damped_zeta(zeta, searched, self.limit.for_layers, self.scale)
            zeta = self._bounded(step, zeta)
        step.noted[self.metric] = zeta
        return zeta

    def update(self, step: Step) -> None:
        """Let zeta follow the budget."""
        if self.limit is not None:
            zeta = adapted_zeta(
                self.zeta, self._searched(step), self.limit.for_layers, self.scale
            )
            self.zeta.assign(self._bounded(step, zeta))

    def _searched(self, step: Step) -> tf.Tensor:
        """Expected cost of the layers that are searched alone."""
        return self.expected(step) - float(self.table.constant)

    def _bounded(self, step: Step, zeta: tf.Tensor) -> tf.Tensor:
        """Of several budgets the tightest is spent, neither more nor less.

        The others only bound: their zeta is never negative.
        """
        if len(self.beside) == 1:
            return zeta
        spent = tf.stop_gradient(tf.stack([each._spent(step) for each in self.beside]))
        own = spent[self.beside.index(self)]
        return tf.where(own >= tf.reduce_max(spent), zeta, tf.maximum(zeta, 0.0))

    def _spent(self, step: Step) -> tf.Tensor:
        assert self.limit is not None
        return self._searched(step) / self.limit.for_layers


def complexities(
    problem: SearchProblem, zeta: float, add_weight: Callable[..., keras.Variable]
) -> tuple[Complexity, ...]:
    """One risk a budget, each with its own zeta; without budgets that of eq. 7.

    Args:
        problem: candidates, costs and budgets.
        zeta: as in `Complexity`.
        add_weight: likewise.
    """
    risks: list[Complexity] = []
    for table, limit in problem.priced():
        suffix = f"_{table.resource}" if risks else ""
        risks.append(Complexity(problem, table, limit, zeta, add_weight, suffix))
    for risk in risks:
        risk.beside = tuple(risks)
    return tuple(risks)


class Generalization(Risk):
    """`R_G`: distance of the hypernet's attribution map from that of the float model.

    Owns the float model, frozen and in inference mode, and both models split where
    random layers end and where the feature map is made.

    Args:
        hypernet: from `build_hypernet`.
        model: the float model, without nested models; it becomes the teacher, unless
            that computes in another type.
        config: the options of the risk.
    """

    name = metric_names.GENERALIZATION_RISK

    def __init__(
        self, hypernet: keras.Model, model: keras.Model, config: RiskConfig
    ) -> None:
        self.config = config
        other = config.teacher_dtype != "float32"
        self.teacher = flat_copy(model, config.teacher_dtype) if other else model
        self.teacher.trainable = False
        front = _random_front(hypernet)
        self.student_parts = split_parts(hypernet, config.feature_layer, front)
        self.teacher_parts = split_parts(self.teacher, config.feature_layer, front)
        self.map_size = None
        rank = len(self.teacher_parts.backbone.output.shape)
        shapes = [t.shape for t in hypernet.inputs if len(t.shape) == rank]
        if config.map_size == "input" and shapes:  # maps of lines have one row
            self.map_size = (1, *shapes[0][1:-1])[-2:]
        self.independent_labels = False
        self.map_count = MapCount()
        self.rank_metric = AttributionRankDistance()

    @property
    def num_scores(self) -> int:
        """Scores that the model has: its classes, or 1 where one logit tells two."""
        return int(self.student_parts.head.outputs[0].shape[-1])

    @property
    def feature_name(self) -> str:
        """Name of the layer that is attributed."""
        return self.teacher_parts.backbone.output._keras_history.operation.name

    def augmented(self, images: Any) -> Any:
        """What the random layers at the front of the model make of a batch."""
        front = self.student_parts.front
        return images if front is None else front(images, training=True)

    def drawn(self, images: Any, step: Any) -> tf.Tensor | None:
        """Places [A] of the images to attribute in a step, by its number; None: all."""
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
            drawn: places of the images that are attributed, integers [A]; None: all.
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
        self.map_count.update_state(maps, classes, self.num_scores)
        return tf.stop_gradient(self._resized(maps))

    def classes(self, labels: Any) -> tf.Tensor | None:
        """Classes to attribute, [B], as `labels_to_classes`; None: those predicted."""
        if self.config.attribution_class == "predicted":
            return None
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
        """`generalization_risk` of the batch, a scalar."""
        p = exponent(self.config, step.branches.expected_bits())
        return generalization_risk(step.maps, step.teacher_maps, p, self.config.top_k)

    def update(self, step: Step) -> None:
        """Note how far the ranks of the maps are apart."""
        self.rank_metric.update_state(step.teacher_maps, step.maps)

    def _resized(self, maps: tf.Tensor) -> tf.Tensor:
        return maps if self.map_size is None else resize_maps(maps, *self.map_size)


def exponent(config: RiskConfig, bits: Sequence[LayerPair]) -> tf.Tensor:
    """The exponent p of the target: fixed, or eq. 8.

    Args:
        config: p, or the capacities.
        bits: expected in each layer, scalars.
    """
    if config.p is not None:
        return tf.constant(config.p, tf.float32)
    return capacity_exponent(bits, config.weight_capacity, config.activation_capacity)


def taken(tensors: Any, places: tf.Tensor | None) -> Any:
    """Rows of tensors [B, ...], nested or None, at some places [A]; all for None."""
    if places is None:
        return tensors
    return keras.tree.map_structure(
        lambda t: t if t is None else tf.gather(t, places), tensors
    )


def split_parts(
    model: keras.Model, feature_layer: str | None, leading: Sequence[str] = ()
) -> SimpleNamespace:
    """`split_front` and `split_head` as a namespace: `front`, `backbone`, `head`."""
    front, _ = split_front(model, leading, model.outputs)
    backbone, head = split_head(model, feature_layer, leading)
    return SimpleNamespace(front=front, backbone=backbone, head=head)


def _random_front(model: keras.Model) -> list[str]:
    """Leading layers up to the last random one, where each image is made."""
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
