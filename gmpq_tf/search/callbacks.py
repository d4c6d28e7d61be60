"""Keras callbacks of the search."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from gmpq_tf.metric_names import GENERALIZATION_RISK, RISKS, ZETA
from gmpq_tf.search.divergence import LEAST_TEMPERATURE, listed, not_finite
from gmpq_tf.search.errors import DivergenceError

REMEDY = (
    "Check the images for NaN and the labels for their range, or lower the learning "
    "rates. Checkpoints of earlier epochs are kept."
)


class StopOnDivergence(keras.callbacks.Callback):
    """Stops training at the first loss that is not finite; names the risk of a search.

    After each epoch it checks the variables too: CPU kernels that fuse a convolution
    with its ReLU turn NaN into 0, so the loss of a network that is all NaN can be
    finite. Put it before callbacks that save.

    Args:
        error: class of the error to raise.
        remedy: end of the error's message.

    Raises:
        DivergenceError: from `fit`; checkpoints written before stay as they are.
    """

    def __init__(
        self, error: type[Exception] = DivergenceError, remedy: str = REMEDY
    ) -> None:
        super().__init__()
        self.error, self.remedy, self.epoch = error, remedy, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the epoch for the message."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping | None = None) -> None:
        """Raises an error if the running mean of the loss is not finite."""
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            raise self.error(
                f"The loss must stay a finite number. Received: loss={loss} "
                f"{self._where(batch, logs or {})}. {self.remedy}"
            )

    def on_epoch_end(self, epoch: int, logs: Mapping | None = None) -> None:
        """Raises an error if a variable is not finite."""
        broken = not_finite(self.model.variables)
        if broken:
            raise self.error(
                "A trained model must have finite weights. "
                f"Received: after epoch {epoch + 1} not finite: {listed(broken)}. "
                f"{self.remedy}"
            )

    def _where(self, batch: int, logs: Mapping) -> str:
        """Text for the error: at which step, and which risks were not finite."""
        risks = [name for name in (*RISKS, ZETA) if name in logs]
        if not risks:
            return f"at step {batch + 1} of epoch {self.epoch + 1}"
        blown = [name for name in risks if not np.isfinite(float(logs[name]))]
        hint = ", which a smaller eta helps" if GENERALIZATION_RISK in blown else ""
        return (
            f"in epoch {self.epoch + 1}, step {batch + 1}; not finite: "
            f"{', '.join(blown) or 'their sum'}{hint}"
        )


class ImportanceLearningRateScheduler(keras.callbacks.LearningRateScheduler):
    """Keras's `LearningRateScheduler` for the optimizer of the importances."""

    def set_model(self, model: keras.Model) -> None:
        """Gives the stock callback the importances' optimizer."""
        self._model = SimpleNamespace(optimizer=model.importance_optimizer)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Logs the rate as `importance_learning_rate`."""
        if logs is not None:
            rate = self._model.optimizer.learning_rate
            logs["importance_learning_rate"] = float(keras.ops.convert_to_numpy(rate))


class TemperatureScheduler(keras.callbacks.Callback):
    """Lowers the temperature of the branch probabilities, epoch by epoch.

    `T(e) = final^(e / (epochs - 1))`: from 1, the paper's softmax, to `final` in the
    last epoch. A weighted sum of branches is more precise than each branch, and so
    hides what few bits cost; a lower temperature brings it nearer to a single branch.
    The importances can shrink to counter that: on CIFAR-10 with `final` 0.1 the largest
    probability of a layer ended between 0.44 and 0.74.

    Args:
        final: temperature of the last epoch, at least 1e-6.
        epochs: epochs of the search.

    Raises:
        ValueError: a value is out of range.

    Source: Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR
    2017. Unlike the paper no noise is added.
    """

    def __init__(self, final: float, epochs: int) -> None:
        super().__init__()
        if not LEAST_TEMPERATURE <= final < np.inf or epochs < 1:
            raise ValueError(
                f"A temperature schedule needs final >= {LEAST_TEMPERATURE:g} and "
                "epochs >= 1. "
                f"Received: final={final!r}, epochs={epochs!r}."
            )
        self.final, self.epochs = float(final), int(epochs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the temperature of this epoch, `final^(epoch / (epochs - 1))`."""
        share = epoch / (self.epochs - 1) if self.epochs > 1 else 1.0
        self.model.set_temperature(self.final ** min(share, 1.0))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the temperature to the logs, as `temperature`."""
        if logs is not None:
            logs["temperature"] = self.model.temperature
