"""Statistics of BatchNormalization, measured anew on the images at hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.graph import fill, infer, read_graph
from gmpq_tf.layer_kinds import Role


class NormStatistics:
    """The layers of a model with moving statistics, which are measured in place.

    Args:
        model: a functional model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._graph = read_graph(model)
        self.layers = [
            call.layer
            for call in self._graph.calls
            if call.role is Role.NORM and hasattr(call.layer, "moving_mean")
        ]

    @cached_property
    def measure(self) -> Any:
        """A function that sets the statistics to those of a batch, in a forward pass.

        It takes a list of the inputs in the graph's order, arrays [B, ...]. All other
        layers compute as in inference: noise, such as that of channel gates, would
        change the statistics, although the measured model has none.
        """
        graph, norms = self._graph, self.layers

        @tf.function(reduce_retracing=True)
        def measure(inputs: Sequence[tf.Tensor]) -> None:
            before = [norm.momentum for norm in norms]
            for norm in norms:  # only while the function is traced
                norm.momentum = 0.0
            tensors: dict[int, Any] = {
                index: tf.cast(tensor, graph.dtypes[index])
                for index, tensor in zip(graph.inputs, inputs, strict=True)
            }
            try:
                for call in graph.calls:
                    if any(call.layer is norm for norm in norms):
                        found = call.layer(*fill(call.args, tensors), training=True)
                    else:
                        found = infer(call, tensors)
                    outputs = keras.tree.flatten(found)
                    tensors.update(zip(call.outputs, outputs, strict=True))
            finally:
                for norm, momentum in zip(norms, before, strict=True):
                    norm.momentum = momentum

        return measure
