"""Creates the variables of a training step before TensorFlow traces the step.

Keras creates the variables of metrics and losses when it first sees labels, which is
while the first step is traced. TensorFlow then discards that trace and traces again,
which takes half of the time to the first step. To find shapes Keras also traces the
whole network; for a functional model they are known without that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def build_before_tracing(model: keras.Model, x: Any, y: Any = None) -> None:
    """Creates the variables of compiled metrics and losses, if the data allow it.

    Args:
        model: a compiled model; it may be trained already.
        x: argument of `fit`: arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`.
            For iterators and generators, which reading would consume, nothing is done;
            the step is then traced twice, as by Keras.
        y: labels, if `x` are arrays.
    """
    if model.distribute_strategy is not tf.distribute.get_strategy():
        return  # for models of a strategy Keras does it
    batch = _first_batch(x, y)
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    if len(leaves) > 1 and all(hasattr(leaf, "dtype") for leaf in leaves):
        output = _known_output(model, batch)
        if output is not None:
            x, y, weight = keras.utils.unpack_x_y_sample_weight(_symbols(batch))
            for function in (model.compute_metrics, model.compute_loss):
                _Symbolic(function).compute_output_spec(x, y, output, weight)
        # The rest: the optimizer; for other models everything.
        model._symbolic_build(data_batch=batch)


class _Symbolic(keras.Operation):
    """A function that Keras can apply to symbolic tensors, by `compute_output_spec`."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def call(self, *args: Any) -> Any:
        return self.function(*args)


def _known_output(model: keras.Model, batch: Any) -> Any:
    """Symbolic outputs of a functional model for a batch; None for other models."""
    network = getattr(model, "hypernet", model)  # a search returns its outputs
    if type(network).__name__ != "Functional":
        return None
    images = keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(batch)[0])
    size = images[0].shape[0]
    return keras.tree.map_structure(
        lambda output: keras.KerasTensor((size, *output.shape[1:]), output.dtype),
        network._outputs_struct,
    )


def _symbols(batch: Any) -> Any:
    """Symbolic tensors for a batch, or for the specification of one."""
    return keras.tree.map_structure(
        lambda v: (
            None
            if v is None
            else keras.KerasTensor(v.shape, keras.backend.standardize_dtype(v.dtype))
        ),
        batch,
    )


def _first_batch(x: Any, y: Any) -> Any:
    if isinstance(x, tf.data.Dataset):
        return x.element_spec
    if isinstance(x, keras.utils.PyDataset):
        return x[0]
    return (x, y)
