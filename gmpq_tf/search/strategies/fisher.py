"""Values choices by the second-order effect of their rounding error on the risk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from gmpq_tf.search.activations import (
    MEASURED,
    TIED,
    ActivationsConfig,
    bonds_of,
    evaluator_of,
    with_activations,
)
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.deltas import default_images, monotone
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.float_pass import (
    FloatPass,
    Seen,
    any_batch,
    quantized_input,
    quantized_kernel,
)
from gmpq_tf.search.values import Bonds, Valued

SCORED = "scored"
OUTPUTS = 64  # most outputs of a model, so that seeds of different batches differ
BOTH = 2  # used in place of a side: weights and activations are rounded together


@dataclass(frozen=True)
class FisherConfig(ActivationsConfig):
    """How errors at the outputs of layers are weighted.

    Args:
        activations: scored values activations by the same gradient as weights; tied
            gives the input of each layer the bits of its kernel, and scores both at
            once; measured values each choice by the risk that it alone adds, as
            loss_delta does.
        images: Images whose gradients are taken; none: as many as loss_delta takes.
        measure: Loss whose gradients are taken: divergence (the cross-entropy of
            classes drawn from the float model's outputs), or task (of the labels).
    """

    activations: str = SCORED

    ways: ClassVar[tuple[str, ...]] = (SCORED, TIED, MEASURED)


def fisher(case: SearchCase, config: FisherConfig) -> Valued:
    """Values choices by `-E[(g . (q(y) - y))^2] / 2`; one backward pass serves all.

    y is the output of a layer on an image in the float model, q(y) the output with the
    layer's kernel or input rounded, g the gradient of the risk with respect to y. With
    classes drawn from the float model's outputs this is the divergence to second order
    (the Fisher information is its Hessian). Unlike in Model Optimizer, which squares
    `g (q(y) - y)` element by element, errors of equal sign add up before squaring, and
    weights and activations have separate scores.

    Args:
        case: the float model, its choices and images.
        config: loss, images, and how activations are valued.

    Returns:
        The values, with samples per image if all of them are scores.

    Source: `auto_quantize` of NVIDIA's Model Optimizer, method "gradient".
    """
    bonds = bonds_of(case, config.activations)
    evaluator = evaluator_of(case, config)
    samples = _scores(evaluator, config, bonds)
    values = monotone(samples, 0.0)
    if config.activations == MEASURED:
        weights = {name: own[0] for name, own in values.items()}
        return with_activations(evaluator, config, weights, bonds, in_nats=True)
    return Valued(values, samples, {"score": values}, bonds=bonds)


def _scores(evaluator: Evaluator, config: FisherConfig, bonds: Bonds) -> Any:
    """Returns minus the score of each choice on each image: samples [images]."""
    case = evaluator.case
    candidates, asked = case.problem.candidates, list(_asked(case, config, bonds))
    images = min(config.images or default_images(case), evaluator.images)
    found: Any = {
        name: tuple({bits: np.zeros(images) for bits in side} for side in own)
        for name, own in candidates.items()
    }
    scorer = _Scorer(evaluator, asked, config.measure)
    batches = evaluator.rows(images) if asked else []
    for rows in batches:
        case.watch.expect(1, scorer.work(rows))
    for rows in batches:
        for (name, side, pair), own in zip(asked, scorer.journaled(rows), strict=True):
            at = 0 if side == BOTH else side
            found[name][at][pair[at]][rows] = -np.array(own)
    return found


def _asked(
    case: SearchCase, config: FisherConfig, bonds: Bonds
) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Yields what to score: (layer, side or `BOTH`, (weight, activation) bits)."""
    for name, (weights, inputs) in case.problem.candidates.items():
        if name in bonds.allowed:
            for pair in bonds.allowed[name]:
                yield name, BOTH, pair
            continue
        if len(weights) > 1:
            for bits in weights:
                yield name, 0, (bits, inputs[0])
        if len(inputs) > 1 and config.activations != MEASURED:
            for bits in inputs:
                yield name, 1, (weights[0], bits)


class _Scorer:
    """Scores of choices on batches of an evaluator's images."""

    def __init__(self, evaluator: Evaluator, asked: list, measure: str) -> None:
        self.evaluator, self.asked, self.measure = evaluator, asked, measure
        # Computed before the journal is read, so that a resumed search counts the same
        # cost.
        self._known = evaluator.teacher
        if measure == "task":
            self._known = evaluator.judge.targets
        self._gradients: Any = self._made() if asked else None

    def work(self, rows: slice) -> float:
        """Counts forward passes: forward, backward, and each layer with each choice."""
        layers = len(self.evaluator.case.problem.candidates)
        return (3 + len(self.asked) / layers) * (rows.stop - rows.start)

    def journaled(self, rows: slice) -> list[list[float]]:
        """Returns `scores`, from the journal if it holds them."""
        case, seconds = self.evaluator.case, 0.0

        def compute() -> list[list[float]]:
            nonlocal seconds
            started = perf_counter()
            found = self.scores(rows)
            case.meter.forward(round(self.work(rows)))
            seconds = perf_counter() - started
            return [[float(f"{v:.7g}") for v in own] for own in found]

        key = {
            "scores": [[name, side, list(pair)] for name, side, pair in self.asked],
            "rows": [rows.start, rows.stop],
            "measure": self.measure,
        }
        answer = case.journal.once(key, compute)
        case.watch.step(self.work(rows), seconds)
        return answer

    def scores(self, rows: slice) -> list[np.ndarray]:
        """Returns `(g . (q(y) - y))^2 / 2` of each choice asked for, arrays [B]."""
        evaluator = self.evaluator
        seed = tf.constant([evaluator.case.seed, OUTPUTS * rows.start], tf.int32)
        seen, gradients = self._gradients(
            [tf.constant(a[rows]) for a in evaluator.held.inputs],
            [tf.constant(own[rows]) for own in self._known],
            seed,
        )
        found = [
            self._score(name, side, pair, seen[name], gradients[name])
            for name, side, pair in self.asked
        ]
        if not all(np.isfinite(own).all() for own in found):
            raise StrategyError(
                "Scores must be finite. "
                f"Received: {evaluator.case.model.name!r}, of which some are NaN or "
                "infinite. Check the images and the model's weights."
            )
        return found

    def _made(self) -> Any:
        """Returns a function: (inputs, known, seed) -> layer tensors, gradients."""
        evaluator, judge = self.evaluator, self.evaluator.judge
        network = FloatPass(evaluator.hypernet, {name for name, *_ in self.asked})
        batch = [any_batch(evaluator.held.inputs), any_batch(self._known)]

        @tf.function(input_signature=[*batch, tf.TensorSpec([2], tf.int32)])
        def gradients(inputs: Any, known: Any, seed: Any) -> tuple[Seen, Mapping]:
            with tf.GradientTape() as tape:
                tape.watch([own for own in inputs if own.dtype.is_floating])
                outputs, seen = network(inputs)
                if self.measure == "task":
                    risk = judge.task(outputs, known)
                else:
                    risk = judge.drawn(outputs, known, seed)
                risk = tf.reduce_sum(risk)
            made = {name: [y for _, y in own] for name, own in seen.items()}
            zero = tf.UnconnectedGradients.ZERO
            return seen, tape.gradient(risk, made, unconnected_gradients=zero)

        return gradients

    def _score(
        self, name: str, side: int, pair: tuple[int, int], seen: Any, gradients: Any
    ) -> np.ndarray:
        layer = self.evaluator.hypernet.get_layer(name)
        kernel = tf.convert_to_tensor(layer.kernel)
        if side != 1:
            kernel = quantized_kernel(layer, pair[0])
        total: Any = 0.0
        for (x, y), gradient in zip(seen, gradients, strict=True):
            if side != 0:
                x = quantized_input(layer, x, pair[1])
            error = layer.finish(layer.multiply(x, kernel), None) - y
            moved = tf.cast(gradient * error, tf.float32)
            total = total + tf.reduce_sum(tf.reshape(moved, [len(y), -1]), axis=1)
        return np.asarray(tf.square(total) / 2, "float64")
