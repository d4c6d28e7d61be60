"""Make what a training step needs before TensorFlow traces the step.

Keras makes the variables of metrics and losses when it first sees labels: while the
first step is traced. TensorFlow throws such a trace away and traces anew, which is half
of the time to the first step. Keras traces the whole network for their shapes, too; of
a functional one they are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def build_before_tracing(model: keras.Model, x: Any, y: Any = None) -> None:
    """Makes the variables of compiled metrics and losses, if the data can be known.

    Args:
        model: compiled; may be trained already.
        x: what `fit` takes: arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`.
            For what is used up by looking at it, nothing is done: the step is then
            traced twice, as Keras does.
        y: labels, where x is arrays.
    """
    if model.distribute_strategy is not tf.distribute.get_strategy():
        return  # Keras does it for models of a strategy
    batch = _first_batch(x, y)
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    if len(leaves) > 1 and all(hasattr(leaf, "dtype") for leaf in leaves):
        output = _known_output(model, batch)
        if output is not None:
            x, y, weight = keras.utils.unpack_x_y_sample_weight(_symbols(batch))
            for function in (model.compute_metrics, model.compute_loss):
                _Symbolic(function).compute_output_spec(x, y, output, weight)
        # What is left: the optimizer, and all of it for other models.
        model._symbolic_build(data_batch=batch)


class _Symbolic(keras.Operation):
    """A function that Keras can compute on symbols, by `compute_output_spec`."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def call(self, *args: Any) -> Any:
        return self.function(*args)


def _known_output(model: keras.Model, batch: Any) -> Any:
    """Symbols of what the model returns for a batch, if it need not be traced."""
    network = getattr(model, "hypernet", model)  # which a search returns as it is
    if type(network).__name__ != "Functional":
        return None
    images = keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(batch)[0])
    size = images[0].shape[0]
    return keras.tree.map_structure(
        lambda output: keras.KerasTensor((size, *output.shape[1:]), output.dtype),
        network._outputs_struct,
    )


def _symbols(batch: Any) -> Any:
    """A batch, or the specification of one, as symbols."""
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
