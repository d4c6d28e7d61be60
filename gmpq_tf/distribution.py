"""Training on several devices with `tf.distribute`, and what Keras 3 needs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


def replica_count() -> int:
    """Replicas that share a step: 1 outside a `tf.distribute` strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


@contextmanager
def synchronized_statistics(model: keras.Model) -> Iterator[None]:
    """BatchNormalization uses the statistics of the whole batch inside the block.

    Each replica sees its share of a batch only; with statistics of the share, training
    on n replicas would not be training on one. Without replicas nothing changes.

    Args:
        model: whose `fit` the block calls.
    """
    changed = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and not layer.synchronized
        and replica_count() > 1
    ]
    for layer in changed:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in changed:
            layer.synchronized = False


def support_workers(model: keras.Model) -> None:
    """Makes `fit` and `evaluate` of a model work on several workers.

    Keras 3 (to 3.15 at least) fails twice under `MultiWorkerMirroredStrategy`: it
    averages a batch that lies on several replicas in order to build the model, and it
    averages the logs along an axis that scalars lack. Other strategies are left as
    they are.

    Args:
        model: built, made in the scope of its strategy; changed in place.
    """
    strategy = model.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    model._maybe_symbolic_build = lambda *args, **kwargs: None  # it is built
    model.make_train_function = lambda force=False: _set_function(
        model, "train_function", model.train_step, force
    )
    model.make_test_function = lambda force=False: _set_function(
        model, "test_function", model.test_step, force
    )


def _set_function(
    model: keras.Model, name: str, step: Callable[[Any], Any], force: bool
) -> Callable:
    if getattr(model, name) is None or force:
        setattr(model, name, _distributed(model, step))
    return getattr(model, name)


def _distributed(model: keras.Model, step: Callable[[Any], Any]) -> Callable:
    """A function of an iterator that runs a step on every replica of every worker."""
    strategy = model.distribute_strategy

    @tf.function(reduce_retracing=True)
    def one_step(data: Any) -> Any:
        logs = strategy.run(step, args=(data,))
        return tf.nest.map_structure(
            lambda value: strategy.reduce("MEAN", value, axis=None), logs
        )

    def several_steps(iterator: Any) -> Any:
        for _ in range(model.steps_per_execution):
            try:
                batch = next(iterator)
            except (StopIteration, tf.errors.OutOfRangeError) as error:
                raise StopIteration from error
            logs = one_step(batch)
        return logs

    return several_steps
