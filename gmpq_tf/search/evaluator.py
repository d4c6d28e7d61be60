"""Measures any policy of a space in one hypernet, without building its network.

Importances can be set so that one branch of each tensor has weight exactly 1 and the
others 0. The hypernet then computes what `quantize_model` of the policy would compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.attribution import grad_cam, rank_distance
from gmpq_tf.attribution.target import resize_maps
from gmpq_tf.graph import read_graph
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.generalizations import generalization_of
from gmpq_tf.search.judge import Judge
from gmpq_tf.search.norm_statistics import NormStatistics
from gmpq_tf.search.tuning import BATCH, Tuner
from gmpq_tf.search.values import Bits
from gmpq_tf.task import Binary
from gmpq_tf.transform import build_hypernet, calibrate
from gmpq_tf.transform.batches import inference_batch
from gmpq_tf.transform.rewrite import flat_copy

TRAINED_STATISTICS = 256  # images that renew the statistics after training steps
DIGITS = 7  # significant digits of stored measurements; float32 has no more


@dataclass(frozen=True)
class Measured:
    """Measurements of a policy, an array [images] each; None: not measured.

    Args:
        divergence: divergence of the outputs from the float model's, in nats.
        task: cross-entropy with the labels, in nats, or squared error.
        right: share of decisions that are right, 0 to 1.
        attribution: generalization risk R_G, with fixed p.
        rank_distance: rank distance of the attribution maps.
    """

    divergence: np.ndarray
    task: np.ndarray | None = None
    right: np.ndarray | None = None
    attribution: np.ndarray | None = None
    rank_distance: np.ndarray | None = None

    @property
    def accuracy(self) -> float | None:
        """Share of decisions that are right; None without labels or decisions."""
        return None if self.right is None else float(self.right.mean())

    def column(self, name: str) -> np.ndarray:
        """The column with a name, one number for each image, [images].

        Raises:
            ValueError: it was not measured.
        """
        found = getattr(self, name)
        if found is None:
            raise ValueError(
                "A risk must have been measured. "
                f"Received: {name!r}, which was not: the images have no labels, or "
                "attribution was left out."
            )
        return found


class Evaluator:
    """Measures policies of a case on its first images.

    Args:
        case: the float model, its choices and images.
        images: number of images to measure on; all if there are fewer.
        attribution: whether R_G and the rank distance are measured.
        risk: options of R_G; None: the defaults.
        statistics: number of images on which the statistics of BatchNormalization are
            measured anew for each policy. 0 keeps those of the float model, except
            after training steps, which outdate them: then it is 256.
        labels: whether labels are used; False: only `divergence` is measured.
        trained: returns a trained hypernet of the case to measure in, whose importances
            are changed; None: a hypernet of the float model is made.

    Raises:
        GraphError: attribution for a model without a feature map.
        StrategyError: labels are needed, and there are none.
    """

    def __init__(
        self,
        case: SearchCase,
        images: int,
        attribution: bool = False,
        risk: RiskConfig | None = None,
        statistics: int = 0,
        labels: bool = False,
        trained: Callable[[], keras.Model] | None = None,
    ) -> None:
        self.case, self.statistics = case, statistics
        self._given = trained
        self.held = case.data.first(images)
        if labels and self.held.labels is None:
            raise StrategyError(
                "The task risk needs labels. Received: measure='task' and a data set "
                "of inputs alone. Pass (inputs, labels), or measure='divergence', "
                "which compares outputs with the float model's."
            )
        self.labels = self.held.labels if labels else None
        self._attribution = attribution
        self._risk = risk or RiskConfig()

    @property
    def images(self) -> int:
        """Number of images that policies are measured on."""
        return len(self.held)

    @cached_property
    def teacher(self) -> list[np.ndarray]:
        """Outputs of the float model on the images, arrays [images, ...]."""
        model, parts = self.case.model, []
        for rows in self.rows(self.images, self._size):
            outputs = keras.tree.flatten(model(self.batch(rows), training=False))
            parts.append([np.asarray(each, "float32") for each in outputs])
            self.case.meter.forward(rows.stop - rows.start)
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    @cached_property
    def judge(self) -> Judge:
        """Computes the risks of outputs from labels and the float model's outputs."""
        case = self.case
        return Judge(case.model, self.teacher, self.labels, case.output_kinds)

    @cached_property
    def hypernet(self) -> keras.Model:
        """The calibrated hypernet in which all policies are measured."""
        case = self.case
        if self._given is not None:
            return self._given()
        keras.utils.set_random_seed(case.seed)
        methods: dict[str, Any] = dict(case.quantizers)
        hypernet = build_hypernet(case.model, case.widened(), **methods)
        calibrate(hypernet, case.calibration(), seed=case.seed)
        case.meter.forward(case.calibration_images)
        return hypernet

    @cached_property
    def tuner(self) -> Tuner:
        """Trains the hypernet on the images after those that measure policies."""
        return Tuner(self.case, self.hypernet, self.judge, self.images)

    def explore(
        self, draws: Iterator[Bits], steps: int, learning_rate: float, size: int
    ) -> float:
        """Trains the hypernet permanently, each step at the bits of the next policy.

        Args:
            draws: policies, one for each step.
            steps: number of steps.
            learning_rate: learning rate of the first step; it falls to zero.
            size: number of images in a step.

        Returns:
            The mean loss of the second half of the steps.
        """
        self.case.watch.expect(steps, 3 * size)

        def each() -> None:
            self._choose(next(draws))

        return self.tuner.train(steps, learning_rate, size, each, shown=True)

    def measure(
        self, bits: Bits, steps: int = 0, images: int | None = None, **training: Any
    ) -> Measured:
        """Risks of a policy on the first images, from the journal if they are there.

        Args:
            bits: layer name -> (weight bits, activation bits), from the space or the
                case's context.
            steps: steps of fine-tuning before the measurement; afterwards the hypernet
                is restored.
            images: number of images; None: all.
            **training: `learning_rate` and `batch_size` of fine-tuning.

        Raises:
            StrategyError: an output is not finite.
        """
        images = min(images or self.images, self.images)
        key = {
            "measure": {
                name: list(bits[name]) for name in self.case.problem.candidates
            },
            "images": images,
            "labelled": self.labels is not None,
        }
        if self._attribution:
            named = ["p", "top_k"]
            if self._risk.generalization != RiskConfig.generalization:
                named += ["generalization", "groups"]
            key["attribution"] = {n: getattr(self._risk, n) for n in named}
        if self._statistics(steps):
            key["statistics"] = self._statistics(steps)
        if self._given is not None:
            key["hypernet"] = "trained"
        if steps:
            key["steps"], key["training"] = steps, training
        seconds = 0.0

        def compute() -> dict[str, list[float]]:
            nonlocal seconds
            started = perf_counter()
            found = self._measure(bits, steps, images, training)
            seconds = perf_counter() - started
            return found

        answer = self.case.journal.once(key, compute)
        self.case.watch.step(self._work(images, steps, **training), seconds)
        return Measured(**{k: np.array(v) for k, v in answer.items()})

    def expect(
        self, count: int, steps: int = 0, images: int | None = None, **training: Any
    ) -> None:
        """Announces `count` calls of `measure` with these arguments to the watch."""
        images = min(images or self.images, self.images)
        self.case.watch.expect(count, self._work(images, steps, **training))

    def _work(
        self, images: int, steps: int, batch_size: int = BATCH, **training: Any
    ) -> float:
        """Work of a measurement, in images of a forward pass; a training step is 3."""
        return images + 3 * steps * batch_size + self._statistics(steps)

    def _statistics(self, steps: int) -> int:
        """Number of images on which statistics are measured anew after some steps.

        Moving averages lag behind weights that have just been trained: with them,
        policies were ranked in the wrong order (`results/policy_bank`).
        """
        return self.statistics or (TRAINED_STATISTICS if steps else 0)

    def _measure(
        self, bits: Bits, steps: int, images: int, training: Mapping[str, Any]
    ) -> dict[str, list[float]]:
        kept, statistics = None, self._statistics(steps)
        renewed = statistics > 0 and bool(self._norms.layers)
        if steps or renewed:
            kept = [np.asarray(v) for v in self.hypernet.variables]
        try:
            self._choose(bits)
            if steps:
                self.tuner.train(steps, **training)
            if renewed:
                self._measure_statistics(statistics)
            return self._risks(images)
        finally:
            if kept is not None:
                for variable, value in zip(self.hypernet.variables, kept, strict=True):
                    variable.assign(value)

    def _choose(self, bits: Bits) -> None:
        """Sets the importances so that only the branches of a policy compute."""
        for name, pair in bits.items():
            layer = self.hypernet.get_layer(name)
            sides = (layer.kernel_branches, layer.input_branches)
            for branches, width in zip(sides, pair, strict=True):
                branches.choose(branches.bits.index(width))

    def _risks(self, images: int) -> dict[str, list[float]]:
        """Columns of `Measured`, as plain JSON values."""
        judge = self.judge
        columns: dict[str, list[np.ndarray]] = {}
        for rows in self.rows(images, self._size):
            outputs, maps = self._outputs(rows)
            self.case.meter.forward(rows.stop - rows.start)
            found = {
                "divergence": judge.divergence(outputs, [t[rows] for t in self.teacher])
            }
            if judge.labelled:
                labels = [own[rows] for own in judge.targets]
                found["task"] = judge.task(outputs, labels)
                if judge.decides:
                    scores = [np.asarray(each) for each in outputs]
                    found["right"] = judge.right(scores, labels)
            for name, value in {**found, **maps}.items():
                columns.setdefault(name, []).append(np.asarray(value))
        return {
            name: _plain(name, np.concatenate(parts)) for name, parts in columns.items()
        }

    def _outputs(self, rows: slice) -> tuple[list[Any], dict[str, Any]]:
        inputs = self.batch(rows)
        if not self._attribution:
            return self._forward(inputs), {}
        output, gaps, distance = self._attributed(
            inputs, tf.constant(self._classes[rows]), self._teacher_maps[rows]
        )
        outputs = keras.tree.flatten(output)
        return outputs, {"attribution": gaps, "rank_distance": distance}

    @cached_property
    def _forward(self) -> Any:
        hypernet = self.hypernet

        @tf.function(reduce_retracing=True)
        def forward(inputs: Any) -> list[tf.Tensor]:
            return keras.tree.flatten(hypernet(inputs, training=False))

        return forward

    @cached_property
    def _guide(self) -> Any:
        make = generalization_of(self._risk.generalization)
        return make(self.hypernet, flat_copy(self.case.model), self._risk)

    @cached_property
    def _classes(self) -> np.ndarray:
        """Classes that are attributed, [images]: labels, or the float model's decision.

        Both networks use the same; else maps of different classes would be compared.
        For a detector the classes of its default boxes, [images, N].
        """
        judge = self.judge
        # A detector has two outputs; this is the scores.
        decides = [each.kind.decides for each in judge.outputs]
        number = decides.index(True) if len(decides) > 1 else 0
        scores = judge.targets[number] if judge.labelled else self.teacher[number]
        if scores.shape[-1] > 1:
            return np.argmax(scores, axis=-1).astype("int32")
        kind = judge.outputs[0].kind
        threshold = kind.threshold if isinstance(kind, Binary) else 0.0
        return (scores[:, 0] > threshold).astype("int32")

    @cached_property
    def _teacher_maps(self) -> np.ndarray:
        maps = []
        for rows in self.rows(self.images):
            found = self._guide.teacher_maps(
                self.batch(rows), tf.constant(self._classes[rows])
            )
            maps.append(np.asarray(found))
            self.case.meter.forward(rows.stop - rows.start)
        return np.concatenate(maps)

    @cached_property
    def _attributed(self) -> Any:
        guide = self._guide
        p = tf.constant(self._risk.p or 1.0, tf.float32)
        parts = guide.student_parts

        def gap(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            student, teacher = pair  # of one image, a batch of size 1
            return guide.distance(student[None], teacher[None], p)

        @tf.function(reduce_retracing=True)
        def attributed(inputs: Any, classes: Any, teacher: Any) -> tuple:
            feature = parts.backbone(inputs, training=False)
            maps, (_, output) = grad_cam(
                parts.head, feature, guide.classes(classes), training=False
            )
            if guide.map_size is not None:
                maps = resize_maps(maps, *guide.map_size)
            gaps = tf.map_fn(gap, (maps, teacher), fn_output_signature=tf.float32)
            return output, gaps, rank_distance(maps, teacher)

        return attributed

    @cached_property
    def _norms(self) -> NormStatistics:
        return NormStatistics(self.hypernet)

    def _measure_statistics(self, images: int) -> None:
        fixed = self.case.data.inputs.batch_size
        rows = slice(0, min(images, self.images, fixed or images))
        self._norms.measure([tf.constant(a[rows]) for a in self.held.inputs])
        self.case.meter.forward(rows.stop)

    def batch(self, rows: slice) -> Any:
        """The images of a slice, in the structure that the model takes."""
        arrays = [tf.constant(a[rows]) for a in self.held.inputs]
        return self.case.data.inputs.structured(arrays)

    @cached_property
    def _size(self) -> int:
        """Images at a time; fewer with attribution, whose maps keep all tensors."""
        if self._attribution:
            return self.case.data.inputs.batch_size or BATCH
        return inference_batch(read_graph(self.case.model))

    def rows(self, images: int, size: int | None = None) -> list[slice]:
        """Slices that cut the first images into batches, of 64 unless `size` says.

        With an open batch size they are equal if possible: others are traced apart.
        """
        fixed = self.case.data.inputs.batch_size
        size = fixed or size or BATCH
        parts = max(-(-images // size), 1)
        size = fixed or -(-images // parts)
        return [slice(i, min(i + size, images)) for i in range(0, images, size)]


def _plain(name: str, values: np.ndarray) -> list[float]:
    if not np.isfinite(values).all():
        raise StrategyError(
            "The outputs of a policy must be finite. "
            f"Received: {name} that is NaN or infinite. Check the images and the "
            "model's weights."
        )
    return [float(f"{v:.{DIGITS}g}") for v in values.ravel()]
