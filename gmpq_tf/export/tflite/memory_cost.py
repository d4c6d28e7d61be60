"""The memory for activations of a `.tflite` file: cost table `activation_bytes`."""

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

ALIGNMENT = 16  # bytes, of tensors in TFLite Micro


def activation_bytes(model: keras.Model, options: TableOptions) -> CostTable:
    """Returns the cost table of the memory that activations of a file need.

    It is what the planner of TFLite Micro gives to computed tensors for one example;
    see `planned_bytes`. Files hold activations in eight bits, so the policy changes
    little (patches of packed kernels, requantized inputs). The table therefore has the
    largest need among the 8-bit file, the file with packed kernels, and files of some
    random policies.

    Args:
        model: the float model.
        options: storage, kernel quantizer and class names; storage None: "fast".

    Raises:
        BudgetError: the model cannot be exported.
    """
    # With batch size 1 the shapes of tensors give the memory for one example.
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
    """A computed tensor: its bytes, and the first and last operator that needs it."""

    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Whether both tensors are needed while the same operator runs."""
        return self.first <= other.last and other.first <= self.last


def peak_bytes(content: bytes) -> int:
    """Returns the largest number of bytes of computed tensors needed at once.

    It is a lower bound for every memory planner.

    Args:
        content: the bytes of a `.tflite` file with a fixed batch.
    """
    tensors = lifetimes(content)
    moments = range(max(tensor.last for tensor in tensors) + 1)
    return max(
        sum(t.size for t in tensors if t.first <= moment <= t.last)
        for moment in moments
    )


def planned_bytes(content: bytes) -> int:
    """Returns the bytes that TFLite Micro's planner needs for the computed tensors.

    Its `GreedyMemoryPlanner` places tensors from the largest to the smallest, each in
    the lowest gap between those that are needed at the same time. That may take more
    than `peak_bytes`. Tensors are aligned to 16 bytes. Kernels of other vendors may
    need more.

    Args:
        content: the bytes of a `.tflite` file with a fixed batch.
    """
    placed: list[tuple[int, Lifetime]] = []  # (offset, tensor), by offset
    tensors = lifetimes(content)
    tensors.reverse()  # among tensors of equal size the last in the file comes first
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
        content: the bytes of a `.tflite` file with a fixed batch.
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
