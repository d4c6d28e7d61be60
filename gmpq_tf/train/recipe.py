"""How weights are trained: optimizer, learning rate schedule, loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import keras

from gmpq_tf.task.classification import gives_logits as gives_logits
from gmpq_tf.task.targets import Targets
from gmpq_tf.task.tasks import task_of
from gmpq_tf.transform.precision import Precision

OptimizerName = Literal["sgd", "adam"]
Schedule = Literal["step", "cosine", "constant"]


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Epochs, optimizer and learning rate.

    Args:
        epochs: Passes over the training images.
        optimizer: Optimizer of the weights.
        learning_rate: Learning rate of the weights in the first epoch.
        momentum: Momentum of SGD, 0 to 1.
        schedule: How learning rates fall: step (by decay_factor at each of
            decay_epochs), cosine (to 0 at the end) or constant.
        decay_epochs: Epochs at which schedule=step lowers the learning rates.
        decay_factor: Factor by which schedule=step multiplies learning rates, above 0,
            at most 1.
        precision: Number format of layers in training: mixed_bfloat16 and mixed_float16
            are faster on GPUs; weights, quantizers and saved files stay float32.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 40
    optimizer: OptimizerName = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    schedule: Schedule = "step"
    decay_epochs: tuple[int, ...] = (20, 30)
    decay_factor: float = 0.1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require(self, "epochs", self.epochs >= 0, "0 or more")
        require_positive(self, "learning_rate")
        require(self, "momentum", 0 <= self.momentum < 1, "0 or more and below 1")
        require(self, "decay_factor", 0 < self.decay_factor <= 1, "above 0, at most 1")
        rising = sorted(set(self.decay_epochs)) == list(self.decay_epochs)
        positive = all(epoch > 0 for epoch in self.decay_epochs)
        require(self, "decay_epochs", rising and positive, "positive and ascending")


def require(config: Any, name: str, valid: bool, rule: str) -> None:
    """Raises an error with a field's name and value if the value is not valid.

    Args:
        config: the configuration.
        name: name of the field.
        valid: whether its value is valid.
        rule: the rule it must follow, in words.

    Raises:
        ValueError: it is not valid.
    """
    if not valid:
        value = getattr(config, name)
        raise ValueError(f"{name} must be {rule}. Received: {name}={value!r}.")


def require_positive(config: Any, name: str) -> None:
    """Refuses a field that is not a finite number above 0.

    Raises:
        ValueError: it is not.
    """
    value = getattr(config, name)
    require(config, name, math.isfinite(value) and value > 0, "a number above 0")


def make_optimizer(
    name: str,
    learning_rate: float,
    config: TrainingConfig,
    steps_per_epoch: int,
    weight_decay: float | None = None,
) -> keras.optimizers.Optimizer:
    """Returns an optimizer whose learning rate follows the schedule.

    Args:
        name: "sgd" or "adam".
        learning_rate: learning rate in the first epoch.
        config: momentum and schedule.
        steps_per_epoch: training steps in an epoch.
        weight_decay: decoupled weight decay as in Keras: a step lowers a weight by this
            share of it, times the learning rate; None for none.

    Returns:
        A new optimizer.
    """
    rate = make_schedule(learning_rate, config, steps_per_epoch)
    if name == "sgd":
        optimizer = keras.optimizers.SGD(
            rate, momentum=config.momentum, weight_decay=weight_decay
        )
    else:
        optimizer = keras.optimizers.Adam(rate, weight_decay=weight_decay)
    if config.precision == "mixed_float16":  # small gradients would become zero
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def make_schedule(
    learning_rate: float, config: TrainingConfig, steps_per_epoch: int
) -> Any:
    """Returns the learning rate as a function of the step, or as a constant.

    It depends only on the step, so that resumed training continues with the right one.

    Args:
        learning_rate: learning rate in the first epoch.
        config: schedule, decay_epochs, decay_factor and epochs.
        steps_per_epoch: training steps in an epoch.

    Returns:
        A Keras schedule or a number, as optimizers take it.
    """
    if config.schedule == "constant" or not config.epochs:
        return learning_rate
    if config.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            learning_rate, config.epochs * steps_per_epoch
        )
    # Keras changes the rate after the boundary step, we want it changed at that step.
    boundaries = [epoch * steps_per_epoch - 1 for epoch in config.decay_epochs]
    values = [
        learning_rate * config.decay_factor**i for i in range(len(boundaries) + 1)
    ]
    if not boundaries:
        return learning_rate
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


def make_loss(model: keras.Model, targets: Targets | None = None) -> Any:
    """Returns the loss of the task that a model's outputs belong to; see `task_of`."""
    return task_of(model, targets).loss()


def make_metrics(model: keras.Model, targets: Targets | None = None) -> list[Any]:
    """Returns the metrics of the task a model's outputs belong to; see `task_of`."""
    return task_of(model, targets).metrics()
