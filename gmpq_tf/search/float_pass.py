"""The float network with what each searched layer reads and makes: one pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.graph import infer, read_graph
from gmpq_tf.quantizers.observing import observing

# Layer -> (input [B, ...], output [B, ...]) of each place where it is called.
Seen = Mapping[str, Sequence[tuple[tf.Tensor, tf.Tensor]]]


class FloatPass:
    """Computes what the float model does, in a hypernet with its quantizers off.

    There every layer of a policy is a layer of the network, those of a separable
    convolution too.

    Args:
        hypernet: from `build_hypernet`.
        names: of its searched layers that are to be seen.
    """

    def __init__(self, hypernet: keras.Model, names: Iterable[str]) -> None:
        self.graph, self.names = read_graph(hypernet), set(names)

    def __call__(self, inputs: Sequence[Any]) -> tuple[list[tf.Tensor], Seen]:
        """Outputs of the network [B, ...], and what was seen.

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
    """What a graph is traced for, that computes batches of any size the same way.

    Graphs of one size may add in another order: a resumed search would differ.

    Args:
        arrays: [images, ...].
    """
    return [tf.TensorSpec([None, *own.shape[1:]], own.dtype) for own in arrays]


def quantized_kernel(layer: Any, bits: int) -> tf.Tensor:
    """The kernel of a layer of a hypernet, of its shape, rounded to so many bits."""
    return layer.quantize_kernel(layer.kernel, one_hot(layer.weight_bits, bits))


def quantized_input(layer: Any, inputs: tf.Tensor, bits: int) -> tf.Tensor:
    """What a layer of a hypernet reads [B, ...], rounded to so many bits."""
    return layer.quantize_input(inputs, one_hot(layer.activation_bits, bits))


def one_hot(candidates: Sequence[int], bits: int) -> tf.Tensor:
    """Weights of branches of which one computes, [branches]."""
    return tf.constant([float(own == bits) for own in candidates])
