"""What activations of a `.tflite` file need in memory: the table `activation_bytes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from gmpq_tf.bits import MIN_BITS
from gmpq_tf.cost_tables import ALL_BITS, CostTable, TableOptions
from gmpq_tf.export.tflite.file_cost import lowered_once, samples
from gmpq_tf.export.tflite.flatbuffer import read_model, tensor_type
from gmpq_tf.graph import searchable_names
from gmpq_tf.policy import BitwidthPolicy

ALIGNMENT = 16  # of tensors, in TFLite Micro


def activation_bytes(model: keras.Model, options: TableOptions) -> CostTable:
    """Returns the table of the activations that a file needs in memory at once.

    What the planner of TFLite Micro gives the tensors that operators compute, for one
    example; see `planned_bytes`. Files hold activations in eight bits, so that bits
    change little: the policy that needs most is counted, of those whose kernels are
    packed and need patches, and of some drawn at random, as inputs move to other grids.

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
    peak = max(planned_bytes(each.content) for each in files)
    zeros = np.zeros((len(ALL_BITS),) * 2)
    note = "Files hold activations in eight bits, whatever the policy says."
    layers = dict.fromkeys(searchable_names(model), zeros)
    return CostTable("activation_bytes", "bytes", layers, peak, None, note)


@dataclass(frozen=True)
class Lifetime:
    """A computed tensor: its bytes, and the operators between which it is kept."""

    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Whether both are kept while one and the same operator runs."""
        return self.first <= other.last and other.first <= self.last


def peak_bytes(content: bytes) -> int:
    """Returns the most bytes of computed tensors alive at once.

    No planner can do with less.

    Args:
        content: of a `.tflite` file of a fixed batch, for which it is.
    """
    tensors = lifetimes(content)
    moments = range(max(tensor.last for tensor in tensors) + 1)
    return max(
        sum(t.size for t in tensors if t.first <= moment <= t.last)
        for moment in moments
    )


def planned_bytes(content: bytes) -> int:
    """Returns what TFLite Micro's planner gives the computed tensors.

    Its `GreedyMemoryPlanner` places the largest tensor first, each in the lowest gap
    among those it meets; that may take more than `peak_bytes`. It aligns tensors to 16
    bytes. Kernels of other makers may ask for more.

    Args:
        content: of a `.tflite` file of a fixed batch, for which it is.
    """
    placed: list[tuple[int, Lifetime]] = []  # (offset, tensor), by offset
    tensors = lifetimes(content)
    tensors.reverse()  # of those of one size, the last in the file comes first
    for tensor in sorted(tensors, key=lambda t: -t.size):
        offset = 0
        for start, other in placed:
            if not tensor.meets(other):
                continue
            if start - offset >= tensor.size:
                break
            offset = max(offset, start + other.size)
        placed.append((offset, tensor))
        placed.sort(key=lambda pair: pair[0])
    return max(offset + tensor.size for offset, tensor in placed)


def lifetimes(content: bytes) -> list[Lifetime]:
    """Returns the computed tensors of a file, and its inputs, by their numbers.

    Args:
        content: of a `.tflite` file of a fixed batch.
    """
    model = read_model(content)
    graph = model.subgraphs[0]
    first = dict.fromkeys(map(int, graph.inputs), 0)
    last = dict(first)
    for number, operator in enumerate(graph.operators, 1):
        first.update((int(tensor), number) for tensor in operator.outputs)
        used = (*operator.inputs, *operator.outputs)
        last.update((int(tensor), number) for tensor in used)
    last.update((int(tensor), len(graph.operators)) for tensor in graph.outputs)
    return [
        Lifetime(_size(model, tensor), first[tensor], last[tensor])
        for tensor in sorted(first)
    ]


def _size(model: Any, number: int) -> int:
    wide = tensor_type(model, number) in ("FLOAT32", "INT32")
    shape = model.subgraphs[0].tensors[number].shape
    return -(-int(np.prod(shape)) * (4 if wide else 1) // ALIGNMENT) * ALIGNMENT
