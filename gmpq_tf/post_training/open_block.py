"""A block of a student while it is learned: its outputs, errors and training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.graph import Graph, infer
from gmpq_tf.post_training.blocks import Block
from gmpq_tf.post_training.open_layer import BlockConfig, OpenLayer
from gmpq_tf.post_training.rounding import draws, power_at

VALUES_A_STEP = 2**22  # values of a block's largest tensor in a step: sets the batch
LEAST_BATCH, MOST_BATCH = 4, 32
# Share of the steps without penalty, and the last learning rate as a share of the
# first.
WARM_UP, LAST_RATE = 0.2, 0.1
FIRST_MOMENT, SECOND_MOMENT, TINY = 0.9, 0.999, 1e-8  # constants of Adam


@dataclass(frozen=True)
class Learned:
    """The result of learning one block.

    Args:
        layers: names of its layers with kernels.
        error_before: mean squared error of its outputs, relative to their variance.
        error: the same after learning; never larger.
        changed: share of the weights whose code is not the nearest.
    """

    layers: tuple[str, ...]
    error_before: float
    error: float
    changed: float


class OpenBlock:
    """A block of the student whose codes, steps, ranges and biases can be learned.

    Args:
        graph: graph of the student.
        block: block of this graph.
        config: what is learned.
        images: number of images that it is learned from.
    """

    def __init__(
        self, graph: Graph, block: Block, config: BlockConfig, images: int
    ) -> None:
        self.calls = graph.calls[block.start : block.stop]
        self.targets, self.config = tuple(block.targets), config
        self.layers = []
        for unit in block.units:
            shape = graph.shapes[unit.call.outputs[0]][1:-1]
            positions = math.inf if None in shape else math.prod(shape)
            self.layers.append(OpenLayer(unit, config, images * positions))
        self.of_call = {id(layer.unit.call): layer for layer in self.layers}
        self.inside = {
            id(layer.unit.batch_norm) for layer in self.layers if layer.unit.batch_norm
        }
        sizes = (
            math.prod(d or 1 for d in graph.shapes[i][1:])
            for c in self.calls
            for i in c.outputs
        )
        batch = VALUES_A_STEP // max(sizes)
        self.batch = int(np.clip(batch, LEAST_BATCH, MOST_BATCH))

    def outputs(
        self, tensors: dict[int, Any], codes: Sequence[Any], random: Any = None
    ) -> list[tf.Tensor]:
        """The block's target tensors, [B, ...] each.

        Args:
            tensors: number -> value [B, ...] of the tensors that the block reads.
            codes: codes of each layer's kernel, of its shape.
            random: draws which activations stay float; None: none do.
        """
        tensors = dict(tensors)
        chosen = dict(zip(map(id, self.layers), codes, strict=True))
        for call in self.calls:
            layer = self.of_call.get(id(call))
            if layer is not None:
                x = tensors[call.inputs[0]]
                last = layer.unit.batch_norm or call
                tensors[last.outputs[0]] = layer.sums(x, chosen[id(layer)], random)
            elif id(call) not in self.inside:
                made = keras.tree.flatten(infer(call, tensors))
                tensors.update(zip(call.outputs, made, strict=True))
        return [tensors[i] for i in self.targets]

    def set_spreads(self, tensors: dict[int, Any]) -> None:
        """Measures the standard deviation of each layer's sums on some images."""
        for call in self.calls:
            layer = self.of_call.get(id(call))
            if layer is not None:
                sums = layer.sums(tensors[call.inputs[0]], layer.nearest)
                layer.spread = float(tf.math.reduce_std(sums)) or 1.0
                tensors = {**tensors, (layer.unit.batch_norm or call).outputs[0]: sums}
            elif id(call) not in self.inside:
                made = keras.tree.flatten(infer(call, tensors))
                tensors = {**tensors, **dict(zip(call.outputs, made, strict=True))}

    def error(
        self, x: dict[int, np.ndarray], y: list[np.ndarray], codes: Sequence[Any]
    ) -> float:
        """Mean squared error over all images, relative to the targets' variance.

        Args:
            x: number -> values [images, ...] of the tensors that the block reads.
            y: values of the float network for each target, [images, ...].
            codes: codes of each layer's kernel, of its shape.
        """
        totals, given = np.zeros(len(y)), [tf.constant(c) for c in codes]
        for start in range(0, len(y[0]), self.batch):
            rows = slice(start, start + self.batch)
            targets = [tf.constant(t[rows]) for t in y]
            totals += np.asarray(self._errors(_rows(x, rows), targets, given))
        scales = [target.var() * target.size + TINY for target in y]
        return float(np.mean(totals / scales))

    @cached_property
    def _errors(self) -> Any:
        """A function (tensors, targets, codes) -> sum of squared errors per target."""

        @tf.function(autograph=False, reduce_retracing=True)
        def errors(tensors: Any, targets: Any, codes: Any) -> list[tf.Tensor]:
            pairs = zip(self.outputs(tensors, codes), targets, strict=True)
            return [tf.reduce_sum(tf.square(a - b)) for a, b in pairs]

        return errors

    def learn(
        self,
        x: dict[int, np.ndarray],
        y: list[np.ndarray],
        random: np.random.Generator,
        tick: Callable[[], Any],
    ) -> Learned:
        """Learns the block, and writes the result into the student if it is better.

        Args:
            x: number -> values [images, ...] of the tensors that the block reads.
            y: values of the float network for each target, [images, ...].
            random: draws the images of each step.
            tick: called after each step.
        """
        self.set_spreads(_rows(x, slice(0, self.batch)))  # before anything is traced
        nearest = [layer.nearest for layer in self.layers]
        before = self.error(x, y, nearest)
        codes, after = nearest, before
        if before > 0:
            self._train(x, y, before, random, tick)
            learned = [
                np.asarray(layer.codes(tf.cast(layer.up() >= 0.5, tf.float32)))
                for layer in self.layers
            ]
            error = self.error(x, y, learned)
            if error < before:
                codes, after = learned, error
                for layer, own in zip(self.layers, codes, strict=True):
                    layer.keep(own)
        weights = sum(n.size for n in nearest)
        changed = sum(int((a != b).sum()) for a, b in zip(codes, nearest, strict=True))
        names = tuple(layer.layer.name for layer in self.layers)
        return Learned(names, before, after, changed / weights)

    def _undecided(self, ups: Sequence[tf.Tensor], power: tf.Tensor) -> tf.Tensor:
        """Mean of `1 - |2 h(V) - 1|^power`, a scalar: 0 if all weights are on codes."""
        pairs = zip(self.layers, ups, strict=True)
        parts = [
            tf.reduce_mean(1 - tf.pow(tf.abs(2 * up - 1), power))
            for layer, up in pairs
            if "rounding" in layer.open
        ]
        return tf.add_n(parts) / len(parts) if parts else tf.constant(0.0)

    def _train(
        self,
        x: dict[int, np.ndarray],
        y: list[np.ndarray],
        before: float,
        random: np.random.Generator,
        tick: Callable[[], Any],
    ) -> None:
        """Learns the variables of all layers: one step of Adam for each draw of images.

        Args:
            x: as for `learn`.
            y: as for `learn`.
            before: error of the nearest codes; the loss is relative to it.
            random: draws the images of each step, and which activations stay float.
            tick: called after each step.
        """
        steps = self.config.steps
        scales = [1 / (before * a.var() + TINY) for a in y]
        noise = tf.random.Generator.from_seed(int(random.integers(2**31)))
        step = self._training_step(scales, noise if self.config.drop else None)
        for number, chosen in enumerate(draws(random, len(y[0]), self.batch, steps)):
            warm = number >= WARM_UP * steps
            scalars = (
                power_at(number, steps),
                self.config.penalty if warm else 0.0,
                1.0 - (1 - LAST_RATE) * number / steps,
                number + 1.0,
            )
            step(
                {i: tf.constant(t[chosen]) for i, t in x.items()},
                [tf.constant(t[chosen]) for t in y],
                *(tf.constant(v, tf.float32) for v in scalars),
            )
            tick()

    def _training_step(self, scales: Sequence[float], noise: Any) -> Any:
        """One step of Adam on a batch, as a `tf.function`.

        Args:
            scales: factor of each target's mean squared error.
            noise: draws which activations stay float; None: none do.

        Returns:
            A function (tensors, targets, power, penalty, rate, count): the tensors that
            the block reads and its targets, [B, ...] each; then scalars: power and
            weight of the penalty, factor of the learning rates, number of the step
            from 1.
        """
        adam = _Adam([(o.open[n], o.rates[n]) for o in self.layers for n in o.open])

        @tf.function(autograph=False)
        def step(
            tensors: Any, targets: Any, power: Any, penalty: Any, rate: Any, count: Any
        ) -> None:
            with tf.GradientTape() as tape:
                ups = [layer.up() for layer in self.layers]
                codes = [o.codes(up) for o, up in zip(self.layers, ups, strict=True)]
                made = self.outputs(tensors, codes, noise)
                loss = tf.add_n(
                    [
                        s * tf.reduce_mean(tf.square(a - b))
                        for a, b, s in zip(made, targets, scales, strict=True)
                    ]
                ) / len(made)
                loss += penalty * self._undecided(ups, power)
            adam.apply(tape.gradient(loss, adam.variables), rate, count)

        return step


class _Adam:
    """Adam with a learning rate for each variable.

    Args:
        pairs: (variable, learning rate) each.
    """

    def __init__(self, pairs: Sequence[tuple[tf.Variable, float]]) -> None:
        self.variables, self.rates = [v for v, _ in pairs], [r for _, r in pairs]
        self.moments = [
            (tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v)))
            for v in self.variables
        ]

    def apply(
        self, gradients: Sequence[tf.Tensor | None], rate: tf.Tensor, count: tf.Tensor
    ) -> None:
        """Changes the variables by one step.

        Args:
            gradients: gradient of each variable; None: it stays as it is.
            rate: factor of all learning rates, a scalar.
            count: number of the step from 1, a scalar.
        """
        rows = zip(self.variables, self.rates, self.moments, gradients, strict=True)
        for v, own, (m, s), g in rows:
            if g is None:  # a registered quantizer without a gradient
                continue
            m.assign(FIRST_MOMENT * m + (1 - FIRST_MOMENT) * g)
            s.assign(SECOND_MOMENT * s + (1 - SECOND_MOMENT) * tf.square(g))
            mean = m / (1 - tf.pow(FIRST_MOMENT, count))
            square = s / (1 - tf.pow(SECOND_MOMENT, count))
            v.assign_sub(own * rate * mean / (tf.sqrt(square) + TINY))


def _rows(x: dict[int, np.ndarray], rows: slice) -> dict[int, tf.Tensor]:
    return {i: tf.constant(t[rows]) for i, t in x.items()}
