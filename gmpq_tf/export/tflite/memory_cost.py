"""What activations of a `.tflite` file need in memory: the table `activation_bytes`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from gmpq_tf.bits import MIN_BITS
from gmpq_tf.cost_tables import ALL_BITS, CostTable, TableOptions
from gmpq_tf.export.tflite.file_cost import lowered_once, samples
from gmpq_tf.export.tflite.flatbuffer import read_model, tensor_type
from gmpq_tf.graph import searchable_names
from gmpq_tf.policy import BitwidthPolicy


def activation_bytes(model: keras.Model, options: TableOptions) -> CostTable:
    """Returns the table of the activations that a file needs in memory at once.

    The largest sum of the tensors that are alive while an operator runs, for one
    example, in the order of the file: what no planner can do with less, and what that
    of TFLite Micro comes to. Files hold activations in eight bits, so that bits change
    little: the policy that needs most is counted, of those whose kernels are packed
    and need patches, and of some drawn at random, as inputs move to other grids.

    Args:
        model: the float model.
        options: whose storage counts; None: "fast".

    Raises:
        BudgetError: the model cannot be exported.
    """
    # With an open batch, shapes do not say what an example takes.
    files = [lowered_once(model, batch=1)]
    if options.storage not in (None, "fast"):
        fewest = BitwidthPolicy.uniform(model, MIN_BITS, MIN_BITS, {})
        files.append(lowered_once(model, options, fewest, batch=1))
    files += [lowered for _, lowered in samples(model, options, batch=1)]
    peak = max(peak_bytes(each.content) for each in files)
    zeros = np.zeros((len(ALL_BITS),) * 2)
    note = "Files hold activations in eight bits, whatever the policy says."
    layers = dict.fromkeys(searchable_names(model), zeros)
    return CostTable("activation_bytes", "bytes", layers, peak, None, note)


def peak_bytes(content: bytes) -> int:
    """Returns the most bytes of computed tensors alive at once.

    Args:
        content: of a `.tflite` file of a fixed batch, for which it is.
    """
    model = read_model(content)
    graph = model.subgraphs[0]
    last: dict[int, int] = {}
    for number, operator in enumerate(graph.operators):
        last.update(dict.fromkeys(operator.inputs, number))
    last.update(dict.fromkeys(graph.outputs, len(graph.operators)))
    alive, most = set(map(int, graph.inputs)), 0
    for number, operator in enumerate(graph.operators):
        alive |= set(map(int, operator.outputs))
        most = max(most, sum(_size(model, tensor) for tensor in alive))
        alive = {tensor for tensor in alive if last.get(tensor, -1) > number}
    return most


def _size(model: Any, number: int) -> int:
    wide = tensor_type(model, number) in ("FLOAT32", "INT32")
    shape = model.subgraphs[0].tensors[number].shape
    return int(np.prod(shape)) * (4 if wide else 1)
