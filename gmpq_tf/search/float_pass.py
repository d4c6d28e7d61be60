"""A float forward pass that returns inputs and outputs of each searched layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.graph import infer, read_graph
from gmpq_tf.quantizers.observing import observing

# Layer -> (input [B, ...], output [B, ...]) of each of its calls.
Seen = Mapping[str, Sequence[tuple[tf.Tensor, tf.Tensor]]]


class FloatPass:
    """Computes the float model, by a hypernet with its quantizers off.

    In a hypernet every layer of a policy is a layer of its own, also both parts of a
    separable convolution.

    Args:
        hypernet: from `build_hypernet`.
        names: names of the searched layers to return.
    """

    def __init__(self, hypernet: keras.Model, names: Iterable[str]) -> None:
        self.graph, self.names = read_graph(hypernet), set(names)

    def __call__(self, inputs: Sequence[Any]) -> tuple[list[tf.Tensor], Seen]:
        """Outputs of the network [B, ...], and inputs and outputs of the layers.

        Args:
            inputs: tensors [B, ...], in the order of the model's inputs.
        """
        graph = self.graph
        tensors: dict[int, Any] = {
            index: tf.cast(tensor, graph.dtypes[index])
            for index, tensor in zip(graph.inputs, inputs, strict=True)
        }
        seen: dict[str, list[tuple[tf.Tensor, tf.Tensor]]] = {}
        with observing({}):
            for call in graph.calls:
                outputs = keras.tree.flatten(infer(call, tensors))
                tensors.update(zip(call.outputs, outputs, strict=True))
                if call.name in self.names:
                    pair = (tensors[call.inputs[0]], outputs[0])
                    seen.setdefault(call.name, []).append(pair)
        return [tensors[index] for index in graph.outputs], seen


def any_batch(arrays: Sequence[np.ndarray]) -> list[tf.TensorSpec]:
    """Signature for tracing one graph for batches of any size.

    A graph for one size might add in another order than that for another, and a resumed
    search would differ in the last digit.

    Args:
        arrays: inputs of the model, [images, ...] each.
    """
    return [tf.TensorSpec([None, *own.shape[1:]], own.dtype) for own in arrays]


def quantized_kernel(layer: Any, bits: int) -> tf.Tensor:
    """The kernel of a hypernet's layer, of the kernel's shape, quantized to `bits`."""
    return layer.quantize_kernel(layer.kernel, one_hot(layer.weight_bits, bits))


def quantized_input(layer: Any, inputs: tf.Tensor, bits: int) -> tf.Tensor:
    """The input of a hypernet's layer, [B, ...], quantized to `bits`."""
    return layer.quantize_input(inputs, one_hot(layer.activation_bits, bits))


def one_hot(candidates: Sequence[int], bits: int) -> tf.Tensor:
    """Weights of branches [branches]: 1 for the branch of `bits`, else 0."""
    return tf.constant([float(own == bits) for own in candidates])
