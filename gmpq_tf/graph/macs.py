"""Multiply-adds of a model's layers."""

from __future__ import annotations

import math
from typing import Any

from gmpq_tf.graph.calls import Call, Graph, GraphError
from gmpq_tf.graph.reading import read_graph
from gmpq_tf.graph.recognition import is_searchable
from gmpq_tf.graph.separable import KernelPart
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layer_kinds import Role


def kernel_size(layer: Any) -> int:
    """Number of kernel weights of a searchable layer."""
    return math.prod(layer.kernel.shape)


def layer_macs(model: Any) -> dict[str, int]:
    """Multiply-adds of one image in each searchable layer, summed over its uses.

    `macs = positions * kernel weights`. Positions are the pixels of the output, for a
    transposed convolution those of the input; for Dense all axes but batch and the
    last. Layers behind one with `examples_per_image`, such as the second stage of a
    detector, are counted as many times as it says.

    Args:
        model: a built functional Keras model.

    Returns:
        Layer name -> multiply-adds, in graph order.

    Raises:
        GraphError: an output shape is not fully known.
    """
    graph = read_graph(model)
    macs: dict[str, int] = {}
    times = examples(graph)
    for call in graph.calls:
        if is_searchable(call.layer):
            positions = positions_of(graph, call)
            if None in positions:
                raise GraphError(
                    "Costs need a fixed input size. "
                    f"Received: layer={call.name!r} with output shape "
                    f"{graph.shapes[call.outputs[0]]}. Give the model's Input a shape."
                )
            count = math.prod(positions) * kernel_size(call.layer)
            count *= times[call.outputs[0]]
            macs[call.name] = macs.get(call.name, 0) + count
    return macs


def examples(graph: Graph) -> dict[int, int]:
    """Tensor number -> number of its examples for one image of the model's input.

    It is 1 unless a layer has `examples_per_image`: a detector of two stages runs the
    second stage once for each region of an image.
    """
    times = dict.fromkeys(graph.inputs, 1)
    for call in graph.calls:
        before = max((times[index] for index in call.inputs), default=1)
        if call.role is Role.HOST:
            before = getattr(call.layer, "examples_per_image", 1)
        times.update(dict.fromkeys(call.outputs, before))
    return times


def positions_of(graph: Graph, call: Call) -> tuple:
    """Sizes of the axes along which a kernel is applied (no batch, no channels)."""
    places = call.inputs if KERNEL_KINDS[call.kind].of_inputs else call.outputs
    shape = graph.shapes[places[0]]
    if getattr(call.layer, "data_format", None) == "channels_first":
        return shape[2:]
    config = call.layer.config if isinstance(call.layer, KernelPart) else {}
    return shape[2:] if config.get("data_format") == "channels_first" else shape[1:-1]
