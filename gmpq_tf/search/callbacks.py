"""Keras callbacks of the search."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from gmpq_tf.search.errors import DivergenceError

RISKS = ("task_risk", "complexity_risk", "generalization_risk")


class StopOnDivergence(keras.callbacks.Callback):
    """Stops training at the first loss that is not finite, naming the risk.

    Raises:
        DivergenceError: from `fit`; checkpoints written before stay as they are.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Start counting epochs."""
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember the epoch for the message."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping | None = None) -> None:
        """Check the running means of the loss and of the risks."""
        logs = logs or {}
        if np.isfinite(float(logs.get("loss", 0.0))):
            return
        blown = [r for r in RISKS if not np.isfinite(float(logs.get(r, 0.0)))]
        raise DivergenceError(
            "The loss must stay finite. "
            f"Received: loss={float(logs['loss'])} in epoch {self.epoch + 1}, step "
            f"{batch + 1}; not finite: {', '.join(blown) or 'the task loss'}. Check "
            "the data for NaN, or lower the learning rates"
            + (" or eta" if "generalization_risk" in blown else "")
            + ". Checkpoints of earlier epochs are kept."
        )


class ImportanceLearningRateScheduler(keras.callbacks.LearningRateScheduler):
    """Stock `LearningRateScheduler`, for the optimizer of the importances."""

    def set_model(self, model: keras.Model) -> None:
        """Show the stock callback the other optimizer."""
        self._model = SimpleNamespace(optimizer=model.importance_optimizer)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Log the rate as `importance_learning_rate`."""
        if logs is not None:
            rate = self._model.optimizer.learning_rate
            logs["importance_learning_rate"] = float(keras.ops.convert_to_numpy(rate))
