"""The input of a strategy: a float model, its choices and budgets, and images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.budget import parse_budget
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.graph import read_graph
from gmpq_tf.inputs import InputError
from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.search.journal import Journal
from gmpq_tf.search.meter import Meter
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.search.watch import Watch
from gmpq_tf.space import SearchSpace
from gmpq_tf.transform import prune_channels
from gmpq_tf.transform.batches import ModelInputs, batches_of, is_arrays

BATCH, SHUFFLED = 64, 50_000
WIDEST = 8  # bits, the nearest to float
MOST = 10**9  # more images than any data set has: all of them
# (Keras model, epochs, callbacks) -> its history: how the caller trains a model.
Fit = Callable[[keras.Model, int, Sequence[Any]], Any]


@dataclass(frozen=True)
class Held:
    """Images that policies are measured on.

    Args:
        inputs: arrays [images, ...], in the order of the model's inputs.
        labels: the labels of all images, in the structure of the data; None: there are
            none.
    """

    inputs: list[np.ndarray]
    labels: Any

    def __len__(self) -> int:
        return len(self.inputs[0])

    def digest(self) -> str:
        """16 hexadecimal digits of a hash of images and labels."""
        found = hashlib.sha256()
        leaves = [leaf for leaf in keras.tree.flatten(self.labels) if leaf is not None]
        for array in [*self.inputs, *leaves]:
            array = np.ascontiguousarray(array)
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(array.tobytes())
        return found.hexdigest()[:16]


class SearchData:
    """Images of a search: the first ones measure policies, the others train.

    Args:
        model: the model that takes the images.
        dataset: arrays, (inputs, labels) arrays, or batches of inputs or of (inputs,
            labels), in the same order each time; see `gmpq_tf.transform.batches`.
    """

    def __init__(self, model: keras.Model, dataset: Any) -> None:
        self.inputs = ModelInputs(read_graph(model))
        self.dataset = dataset

    def first(self, count: int) -> Held:
        """The first `count` images, or all if there are fewer.

        Raises:
            InputError: there is no image, or only some batches have labels.
        """
        found, images = [], 0
        for arrays, labels in self._batches():
            rows = min(len(arrays[0]), count - images)
            found.append(_rows(arrays, labels, slice(0, rows)))
            images += rows
            if images >= count:
                break
        if not images:
            raise InputError(
                "A search needs images to measure policies on. Received: a data set "
                "without any. Pass training images."
            )
        return _joined(found)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Batches (inputs as the model takes them, labels or None), in order."""
        for arrays, labels in self._batches():
            yield self.inputs.structured(arrays), labels

    @property
    def batch_images(self) -> int:
        """Number of images in a batch of `epochs`."""
        if self._is_batched():
            return len(next(self._batches())[0][0])
        return BATCH

    def epochs(self, seed: int) -> Any:
        """The data as `fit` takes them; arrays are shuffled, batched data stay."""
        if self._is_batched():
            return self.dataset
        held = self.first(MOST)
        data = tf.data.Dataset.from_tensor_slices(
            (self.inputs.structured(held.inputs), held.labels)
        )
        shuffled = data.shuffle(min(len(held), SHUFFLED), seed=seed)
        return shuffled.batch(BATCH, drop_remainder=len(held) >= BATCH)

    def _is_batched(self) -> bool:
        return isinstance(self.dataset, (tf.data.Dataset, keras.utils.PyDataset))

    def training(self, size: int, after: int) -> Iterator[tuple[list[np.ndarray], Any]]:
        """Endless batches [size, ...] of the images after the first ones, in order.

        Args:
            size: number of images in a batch.
            after: how many images to skip.

        Raises:
            InputError: fewer than a batch are left.
        """
        while True:
            left, kept, batches = after, [], 0
            for arrays, labels in self._batches():
                skipped = min(left, len(arrays[0]))
                left -= skipped
                kept.append(_rows(arrays, labels, slice(skipped, None)))
                while sum(len(inputs[0]) for inputs, _ in kept) >= size:
                    held = _joined(kept)
                    rest = slice(size, None)
                    kept = [_rows(held.inputs, held.labels, rest)]
                    batches += 1
                    yield _rows(held.inputs, held.labels, slice(0, size))
            if not batches:
                raise InputError(
                    f"Fine-tuning needs a batch of {size} images besides the {after} "
                    "that policies are measured on. Received: a data set of fewer. "
                    "Pass more images, lower images or batch_size, or compare "
                    "finalists with finalist_steps=0."
                )

    def _batches(self) -> Iterator[tuple[list[np.ndarray], Any]]:
        data, labels = self.dataset, None
        if self._is_labelled_arrays(data):
            data, labels = data
        if isinstance(data, Iterator):
            raise InputError(
                "A search reads its images more than once. "
                f"Received: dataset={type(data).__name__}, which is used up by reading "
                "it. Pass arrays, a list of batches, a tf.data.Dataset or a "
                "keras.utils.PyDataset."
            )
        yield from batches_of(self.inputs, data, labels)

    def _is_labelled_arrays(self, data: Any) -> bool:
        """Whether data are a tuple of two arrays: all images and all labels."""
        if not isinstance(data, tuple) or len(data) != 2:
            return False
        images, labels = data
        if not is_arrays(images, self.inputs) and not hasattr(images, "shape"):
            return False
        if len(self.inputs.names) == 1:
            wanted = next(iter(self.inputs.shapes.values()))
            same = np.ndim(labels) == len(wanted) and np.shape(labels)[1:] == wanted[1:]
            return not same or len(labels) == len(images)
        return True


@dataclass(frozen=True, eq=False)
class SearchCase:
    """Everything that a strategy is given.

    Args:
        model: the float model; it is not changed.
        problem: candidates, costs and limits.
        data: the images.
        fit: trains a compiled Keras model in the caller's way, with backups if the
            caller makes some.
        seed: seed of everything random.
        journal: stores each measurement, so that it is made only once.
        meter: counts the cost of the search.
        calibration_images: number of training images that set activation ranges.
        quantizers: input_quantizer and kernel_quantizer, where they are not the
            defaults.
        budget: the arguments budget, storage and latency_table.
        watch: shows the progress of measuring.
        output_kinds: what the outputs mean, as `outputs_of` takes it; None: derived.
    """

    model: keras.Model
    problem: SearchProblem
    data: SearchData
    fit: Fit
    seed: int
    journal: Journal
    meter: Meter
    calibration_images: int = 512
    quantizers: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    watch: Watch = field(default_factory=lambda: Watch("none"))
    output_kinds: Any = None

    def context(self) -> dict[str, tuple[int, int]]:
        """The policy that single choices are measured in: all else at 8 bits.

        Layer name -> (weight bits, activation bits). A tensor with a single candidate
        keeps that; one whose quantizer has no 8 bits takes its widest candidate.
        """
        name = self.quantizers.get("kernel_quantizer", DEFAULT_KERNEL_QUANTIZER)
        return {
            layer: (
                _most(weights, lambda: kernel_method(name).largest_code(WIDEST)),
                _most(inputs, lambda: None),
            )
            for layer, (weights, inputs) in self.problem.candidates.items()
        }

    def pruned(
        self, kept: Mapping[str, Sequence[bool]], trained: keras.Model | None = None
    ) -> SearchCase:
        """Returns the case of the model without some channels, with the same budgets.

        Args:
            kept: masks, as `prune_channels` takes them; {}: the case itself.
            trained: the float model with other weights; None: its own weights.
        """
        if not kept:
            return self
        small = prune_channels(trained or self.model, kept)
        options = TableOptions(
            self.budget.get("storage"),
            self.budget.get("latency_table"),
            self.quantizers.get("kernel_quantizer"),
        )
        if self.budget.get("budget") is not None:
            options = options.for_budgets(parse_budget(self.budget["budget"]))
        problem = self.problem.of_smaller(small, options)
        return replace(self, model=small, problem=problem)

    def widened(self) -> SearchSpace:
        """The space with the bits of `context` added, which the evaluator needs too."""
        space, context = self.problem.space, self.context()
        single = {
            name: (pair[0][0], pair[1][0])
            for name, pair in self.problem.candidates.items()
            if len(pair[0]) == len(pair[1]) == 1
        }
        weights, inputs = (
            {pair[i] for name, pair in context.items() if name not in single}
            for i in (0, 1)
        )
        return SearchSpace(
            tuple({*space.weight_bits, *weights}),
            tuple({*space.activation_bits, *inputs}),
            single,
        )

    def calibration(self) -> list[Any]:
        """Batches of the images that set ranges, as `gmpq.calibrate` takes them."""
        held = self.data.first(self.calibration_images)
        size = self.data.inputs.batch_size or 64
        return [
            self.data.inputs.structured([a[i : i + size] for a in held.inputs])
            for i in range(0, len(held), size)
            if i == 0 or len(held) - i >= (self.data.inputs.batch_size or 1)
        ]


def _most(candidates: Sequence[int], check: Callable[[], Any]) -> int:
    """8 bits; the only candidate, if there is one; the widest, if `check` refuses 8."""
    if len(candidates) == 1:
        return candidates[0]
    try:
        check()
    except PolicyError:
        return max(candidates)
    return WIDEST


def _rows(arrays: list, labels: Any, part: slice) -> tuple[list[np.ndarray], Any]:
    return [a[part] for a in arrays], keras.tree.map_structure(
        lambda own: None if own is None else np.asarray(own)[part], labels
    )


def _joined(batches: Sequence[tuple[list[np.ndarray], Any]]) -> Held:
    """Concatenates batches; all of them have labels, or none has."""
    parts = [labels for _, labels in batches]
    missing = [part is None for part in parts]
    if any(missing) and not all(missing):
        raise InputError(
            "All images must have labels, or none. "
            "Received: batches with labels and batches without. Leave the labels out, "
            "or add those that are missing."
        )
    columns = zip(*(arrays for arrays, _ in batches), strict=True)
    inputs = [np.concatenate(column) for column in columns]
    if all(missing):
        return Held(inputs, None)
    joined = keras.tree.map_structure(
        lambda *own: None if own[0] is None else np.concatenate(own), *parts
    )
    return Held(inputs, joined)
