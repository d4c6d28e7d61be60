"""The training and test steps of a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf import metric_names
from gmpq_tf.distribution import replica_count
from gmpq_tf.first_trace import build_before_tracing
from gmpq_tf.metric_names import TOTAL
from gmpq_tf.search.attribution_risk import Generalization
from gmpq_tf.search.divergence import WatchedMean, nan_of_labels
from gmpq_tf.search.first_steps import FirstSteps
from gmpq_tf.search.risks import Risk, Step
from gmpq_tf.search.rules import Plain
from gmpq_tf.search.search_views import SearchViews
from gmpq_tf.transform import calibrate
from gmpq_tf.transform.calibrate import first_images, is_calibrated

# Metrics that `evaluate` does not compute.
NOT_EVALUATED = (TOTAL, *metric_names.RISKS, metric_names.RANK_DISTANCE)


class SearchSteps(SearchViews, keras.Model):
    """Training steps on the hypernet's weights and importances together."""

    risks: tuple[Risk, ...]
    generalization: Generalization | None
    risk_metrics: Mapping[str, WatchedMean]
    rule: Plain
    epochs_trained: int

    def calibrate(self, dataset: Iterable, batches: int | None = None) -> None:
        """Sets every range of the hypernet from data; see `gmpq.calibrate`."""
        calibrate(self.hypernet, dataset, batches)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Trains the search; arguments as for `keras.Model.fit`.

        Ranges that are not calibrated are calibrated first, on the first 512 images of
        `x` (arrays, `tf.data.Dataset` or `keras.utils.PyDataset`; for other sources
        call `calibrate` before).
        """
        if not is_calibrated(self.hypernet):
            self.calibrate(first_images(self.hypernet, x))
        self.risk_metrics[TOTAL].forget()
        build_before_tracing(self, x, y)
        # A resumed search starts after the epochs that an earlier process has finished.
        self.epochs_trained = kwargs.get("initial_epoch", self.epochs_trained)
        watch = FirstSteps()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            watch.set_model(self)
            callbacks.append(watch)
        else:
            callbacks = [watch, *keras.tree.flatten(callbacks or [])]
        return super().fit(
            x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs
        )

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`; an earlier divergence is forgotten."""
        super().load_weights(*args, **kwargs)
        self.risk_metrics[TOTAL].forget()

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.hypernet(inputs, training=training)

    def train_step(self, data: Any) -> dict:
        """One step on weights and importances together (section 4.1)."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        step = self._begin(x, y)
        network, importances = self.network_variables, self.importance_variables

        def passed() -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
            now = step.again() if step.values else step
            with self.branches.together():
                output = self._forward(now)
                task = self.compute_loss(
                    x=x, y=y, y_pred=output, sample_weight=sample_weight
                )
                guidance = sum(risk.weighted(now) for risk in self.risks)
            # Gradients of replicas are added; Keras divides the task loss for that.
            return task + guidance / replica_count(), (output, task, guidance)

        (output, task, guidance), gradients = self.rule.gradients(
            passed, network + importances
        )
        self.optimizer.apply(gradients[: len(network)], network)
        self.importance_optimizer.apply(gradients[len(network) :], importances)
        task = task * replica_count()
        step.values |= {TOTAL: task + guidance, metric_names.TASK_RISK: task}
        for name, metric in self.risk_metrics.items():  # R_G is 0 without a teacher
            metric.update_state(step.values.get(name, 0.0))
        self.compute_metrics(x, y, output, sample_weight)
        with self.branches.together():
            for risk in self.risks:
                risk.update(step)
            return self._logs(step)

    @property
    def losses(self) -> list[Any]:
        """Regularization losses of the hypernet's layers, without the teacher's."""
        return self.hypernet.losses

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Keras's loss, a scalar; arguments as for `keras.Model.compute_loss`.

        It is NaN if a label is NaN, which XLA would cast to a class number.
        """
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + nan_of_labels(y)

    def _begin(self, x: Any, y: Any) -> Step:
        """Starts a step: images after the random layers, and the teacher's maps."""
        guide = self.generalization
        if guide is None:
            return Step(x, y, self.branches)
        images = guide.augmented(x)  # the same for the hypernet and the teacher
        drawn = guide.drawn(images, self.optimizer.iterations)
        maps = guide.teacher_maps(images, y, drawn)
        return Step(images, y, self.branches, drawn, maps)

    def _forward(self, step: Step) -> tf.Tensor:
        """The hypernet's output, [B, ...]; its maps are stored in the step."""
        if self.generalization is None:
            return self.hypernet(step.images, training=True)
        output, step.maps = self.generalization.forward(
            step.images, step.labels, step.drawn
        )
        return output

    def _logs(self, step: Step) -> dict:
        logs = self.get_metrics_result()
        logs["loss"] = logs.pop(TOTAL)
        noted = step.noted
        if metric_names.EXPECTED_BIT_OPS not in noted:
            noted = {metric_names.EXPECTED_BIT_OPS: self.expected_bit_ops(), **noted}
        return {**logs, **noted, metric_names.EXPONENT: self.exponent()}

    def test_step(self, data: Any) -> dict:
        """Task loss and metrics of the hypernet on a batch, as Keras's logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        output = self.hypernet(x, training=False)
        task = self.compute_loss(
            x=x, y=y, y_pred=output, sample_weight=sample_weight, training=False
        )
        images = tf.shape(keras.tree.flatten(x)[0])[0]  # the last batch may be smaller
        task_risk = self.risk_metrics[metric_names.TASK_RISK]
        task_risk.update_state(task * replica_count(), sample_weight=images)
        logs = self.compute_metrics(x, y, output, sample_weight)
        left_out = {*NOT_EVALUATED, *self.risk_metrics}
        kept = {k: v for k, v in logs.items() if k not in left_out}
        return {**kept, "loss": task_risk.result()}
