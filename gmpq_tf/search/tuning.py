"""Trains a hypernet at chosen bits: those of one policy, or others in each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.judge import Judge

BATCH = 64
MOMENTUM = 0.9


class Tuner:
    """Trains weights, steps and ranges, but not importances, by SGD with momentum.

    The targets are labels if the judge has some, else the outputs of the float model.

    Args:
        case: the float model and its images.
        hypernet: a hypernet of the float model.
        judge: computes the loss.
        after: number of images to skip before those for training.
    """

    def __init__(
        self, case: SearchCase, hypernet: keras.Model, judge: Judge, after: int
    ) -> None:
        self.case, self.hypernet, self.judge = case, hypernet, judge
        self.after = after

    def train(
        self,
        steps: int,
        learning_rate: float = 0.01,
        batch_size: int = BATCH,
        each: Callable[[], None] | None = None,
        shown: bool = False,
    ) -> float:
        """Trains for some steps; the learning rate falls to zero.

        Args:
            steps: number of steps, at least 1.
            learning_rate: learning rate of the first step.
            batch_size: number of images in a step.
            each: called before each step; it may choose other bits.
            shown: whether each step counts in the shown progress.

        Returns:
            The mean loss of the second half of the steps.
        """
        optimizer = self._optimizer
        for variable in optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        batches = self.case.data.training(batch_size, self.after)
        losses = []
        for step in range(steps):
            started = perf_counter()
            if each is not None:
                each()
            arrays, labels = next(batches)
            optimizer.learning_rate.assign(learning_rate * (1 - step / steps))
            inputs = self.case.data.inputs.structured(map(tf.constant, arrays))
            losses.append(self._step(inputs, self._targets(inputs, labels)))
            if shown:
                self.case.watch.step(3 * batch_size, perf_counter() - started)
        self.case.meter.training(steps * batch_size)
        return float(np.mean([float(loss) for loss in losses[steps // 2 :]]))

    def _targets(self, inputs: Any, labels: Any) -> list[tf.Tensor]:
        """Targets [B, ...] of each output: labels, or the float model's outputs."""
        outputs = keras.tree.flatten(self.case.model(inputs, training=False))
        if not self.judge.labelled:
            return outputs
        scores = [np.asarray(each) for each in outputs]
        judge = Judge(self.case.model, scores, labels, self.case.output_kinds)
        return [tf.constant(own) for own in judge.targets]

    @cached_property
    def _trained(self) -> list[keras.Variable]:
        importances = {
            id(variable)
            for name in self.case.problem.candidates
            for layer in [self.hypernet.get_layer(name)]
            for variable in (layer.kernel_importance, layer.input_importance)
        }
        return [
            v for v in self.hypernet.trainable_variables if id(v) not in importances
        ]

    @cached_property
    def _optimizer(self) -> keras.optimizers.Optimizer:
        optimizer = keras.optimizers.SGD(0.01, momentum=MOMENTUM)
        optimizer.build(self._trained)
        return optimizer

    @cached_property
    def _step(self) -> Any:
        hypernet, judge, variables = self.hypernet, self.judge, self._trained
        optimizer = self._optimizer  # its variables must exist before tracing
        risk = judge.task if judge.labelled else judge.divergence

        @tf.function(reduce_retracing=True)
        def train(inputs: Any, targets: Sequence[tf.Tensor]) -> tf.Tensor:
            with tf.GradientTape() as tape:
                outputs = keras.tree.flatten(hypernet(inputs, training=True))
                loss = tf.reduce_mean(risk(outputs, targets))
            gradients = tape.gradient(loss, variables)
            optimizer.apply(gradients, variables)
            return loss

        return train
