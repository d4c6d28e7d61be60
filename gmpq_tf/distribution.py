"""Training on several devices with `tf.distribute`, with workarounds for Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


def replica_count() -> int:
    """Number of replicas that share a step: 1 outside a `tf.distribute` strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


@contextmanager
def synchronized_statistics(model: keras.Model) -> Iterator[None]:
    """Inside the block BatchNormalization uses statistics of the whole batch.

    A replica sees only its share of a batch; with statistics of the share, training on
    n replicas would differ from training on one. Without replicas nothing changes.

    Args:
        model: the model that the block trains.
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

    Keras 3 (up to 3.15 at least) fails twice under `MultiWorkerMirroredStrategy`: it
    tries to average a batch over replicas in order to build the model, and it averages
    the logs along an axis that scalars do not have. For other strategies nothing
    changes.

    Args:
        model: a built model, made in the scope of its strategy; changed in place.
    """
    strategy = model.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    model._maybe_symbolic_build = lambda *args, **kwargs: None  # it is built already
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
    """A function that takes an iterator and runs a step on all replicas and workers."""
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
