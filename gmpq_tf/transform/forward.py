"""Runs a model on batches in inference: whole, or layer by layer in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import Graph, infer
from gmpq_tf.transform.batches import ModelInputs

MEMORY_BYTES = 2**30
EAGER_BATCHES = 4  # tracing a student takes as long as some ten batches


def predictor(model: keras.Model) -> Callable[[Any], Any]:
    """A function inputs -> outputs of a model in inference, as NumPy arrays.

    The first batches are computed eagerly, which for few is faster than tracing.

    Args:
        model: any model; its weights may change, its layers may not.
    """
    calls = count()

    def predict(inputs: Any) -> Any:
        if next(calls) >= EAGER_BATCHES:
            return model.predict_on_batch(inputs)
        return keras.tree.map_structure(np.asarray, model(inputs, training=False))

    return predict


class LayerwiseRun:
    """Computes one call after another, each from the tensors kept before it.

    A caller walks through the calls in order, and may change the layer of the call it
    asked for, and later layers. The tensors that later calls read are kept for all
    batches where they fit into memory; where they do not, as in the large first layers,
    calls are computed again. Such a walk takes about one pass over the data; building a
    model up to each call would take one pass a call.

    Args:
        graph: graph of the model; it runs in inference mode.
        batches: inputs as the model takes them.
        memory: bytes that kept tensors may take.
    """

    def __init__(
        self, graph: Graph, batches: Sequence[Any], memory: int = MEMORY_BYTES
    ) -> None:
        self.graph, self.memory = graph, memory
        self.start = 0  # the first call that is not computed yet
        inputs = ModelInputs(graph)
        self.given = [self._tensors(inputs.read(batch)) for batch in batches]
        self.kept = self.given
        self.images = sum(len(tensors[graph.inputs[0]]) for tensors in self.kept)
        self.last_reader = {
            index: number
            for number, call in enumerate(graph.calls)
            for index in call.inputs
        }

    def _tensors(self, arrays: Sequence[np.ndarray]) -> dict[int, Any]:
        pairs = zip(self.graph.inputs, arrays, strict=True)
        return {
            i: keras.ops.convert_to_tensor(a, self.graph.dtypes[i]) for i, a in pairs
        }

    def outputs(self, number: int) -> Iterator[np.ndarray]:
        """The first output of call `number`, batch by batch.

        Args:
            number: index of the call in `graph.calls`; if it is smaller than the last
                one asked for, everything is computed again from the inputs.

        Yields:
            [B, ...], float32.
        """
        for tensors in self._before(number):
            yield np.asarray(self._call(tensors, number)[0])

    def operands(self, number: int) -> Iterator[np.ndarray]:
        """The first tensor that call `number` reads, batch by batch, [B, ...] each."""
        source = self.graph.calls[number].inputs[0]
        for tensors in self._before(number):
            yield np.asarray(tensors[source])

    def tensors(self, number: int) -> Iterator[dict[int, Any]]:
        """All tensors that call `number` and later ones read, batch by batch.

        Yields:
            Tensor number -> [B, ...].
        """
        yield from map(dict, self._before(number))

    def _before(self, number: int) -> Iterator[dict[int, Any]]:
        """The tensors that exist before call `number`, batch by batch."""
        if number < self.start:
            self.start, self.kept = 0, self.given
        fits, found = self._bytes_at(number) <= self.memory, []
        for kept in self.kept:
            tensors = self._run(dict(kept), number)
            if fits:
                found.append(tensors)
            yield tensors
        if fits:
            self.start, self.kept = number, found

    def _run(self, tensors: dict[int, Any], stop: int) -> dict[int, Any]:
        """Computes the calls before `stop`; returns the tensors read from there on."""
        for number in range(self.start, stop):
            outputs = self.graph.calls[number].outputs
            tensors.update(zip(outputs, self._call(tensors, number), strict=True))
            read = self.graph.calls[number].inputs
            for index in {*read, *outputs}:
                if self.last_reader.get(index, -1) <= number:
                    tensors.pop(index, None)
        return tensors

    def _call(self, tensors: dict[int, Any], number: int) -> list[Any]:
        return keras.tree.flatten(infer(self.graph.calls[number], tensors))

    def _bytes_at(self, number: int) -> int:
        """Bytes of the tensors that exist before call `number`, for all images."""
        made = [
            *self.graph.inputs,
            *(i for call in self.graph.calls[:number] for i in call.outputs),
        ]
        live = {i for i in made if self.last_reader.get(i, -1) >= number}
        sizes = (math.prod(d or 1 for d in self.graph.shapes[i][1:]) for i in live)
        return 4 * self.images * sum(sizes)
