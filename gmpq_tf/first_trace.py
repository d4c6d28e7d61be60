"""Make what a training step needs before TensorFlow traces the step.

Keras makes the variables of metrics and losses when it first sees labels: while the
first step is traced. TensorFlow throws such a trace away and traces anew, which is half
of the time to the first step.
"""

from __future__ import annotations

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
        model._symbolic_build(data_batch=batch)


def _first_batch(x: Any, y: Any) -> Any:
    if isinstance(x, tf.data.Dataset):
        return x.element_spec
    if isinstance(x, keras.utils.PyDataset):
        return x[0]
    return (x, y)
