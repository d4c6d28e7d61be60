"""GMPQ-TE: values choices by the topological entropy of a layer's feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.graph import read_graph
from gmpq_tf.search.activations import (
    TIED,
    ActivationsConfig,
    bonds_of,
    evaluator_of,
    with_activations,
)
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_whole
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.float_pass import FloatPass, any_batch
from gmpq_tf.search.topology import birth, entropy
from gmpq_tf.search.values import Valued

BATCH = 16  # images; finding holes takes longer than the forward pass
LEAST_NODES = 4  # nodes of the smallest hole: a loop that is not a triangle
SEARCHED = 16  # times as many images are searched for enough of one class


@dataclass(frozen=True)
class TopologicalEntropyConfig(ActivationsConfig):
    """Options of `ActivationsConfig`, and which feature maps are used.

    Args:
        activations: tied gives the input of each layer the bits of its kernel; measured
            values each choice by the risk that it alone adds, as loss_delta does.
        map_images: Number of images of one class whose maps are used.
        map_channels: Number of channels of each layer, evenly spaced.
        map_nodes: Rows and columns that larger maps are averaged to.
        map_steps: Number of steps in which the threshold falls.
    """

    activations: str = TIED
    map_images: int = 128
    map_channels: int = 16
    map_nodes: int = 32
    map_steps: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("map_images", self.map_images, 2)
        check_whole("map_channels", self.map_channels, 1)
        check_whole("map_nodes", self.map_nodes, LEAST_NODES)
        check_whole("map_steps", self.map_steps, 2)


def topological_entropy(case: SearchCase, config: TopologicalEntropyConfig) -> Valued:
    """Values bits of kernels by `H_l log2(b)`, H_l a topological entropy.

    A feature map is read as the adjacency matrix of a graph, made symmetric by the
    maximum. As a threshold falls, edges appear, and at some step the first hole
    (`topology.birth`). H_l is the entropy of the histogram of these steps over images
    of one class, averaged over channels (of all calls of a layer). Rounding errors are
    not measured.

    The paper leaves several of its steps open, so this is an interpretation. Unlike
    there, the value is concave in the bits instead of linear under an order of the
    layers; more entropy asks for more bits; maps that are not square are cut to a
    square; Dense layers and maps of fewer than 4 rows take the mean of the other
    layers; and the class of an image is the float model's decision, so that no labels
    are needed.

    Args:
        case: the float model, its choices and images.
        config: which maps are used, and how activations are valued.

    Returns:
        The values, and a column with the values of weights alone.

    Raises:
        StrategyError: no layer whose weights have a choice makes feature maps.

    Source: "Efficient and Generalizable Mixed-Precision Quantization via Topological
    Entropy", NeurIPS 2025.
    """
    bonds = bonds_of(case, config.activations)
    candidates = case.problem.candidates
    evaluator = evaluator_of(case, config, SEARCHED * config.map_images)
    free = [name for name, (weights, _) in candidates.items() if len(weights) > 1]
    _check_maps(evaluator, free)
    entropies = _entropies(evaluator, free, config)
    mean = float(np.mean(list(entropies.values()))) if entropies else 1.0
    values = {
        name: {b: entropies.get(name, mean) * float(np.log2(b)) for b in weights}
        for name, (weights, _) in candidates.items()
    }
    return with_activations(evaluator, config, values, bonds, in_nats=False)


def _check_maps(evaluator: Evaluator, names: Sequence[str]) -> None:
    """Refuses networks whose layers would all have the same value."""
    graph = read_graph(evaluator.case.model)
    shapes = [
        graph.shapes[call.outputs[0]] for call in graph.calls if call.name in names
    ]
    if names and not any(map(_has_holes, shapes)):
        raise StrategyError(
            "topological_entropy looks at feature maps of "
            f"{LEAST_NODES} x {LEAST_NODES} pixels or more. "
            f"Received: {evaluator.case.model.name!r}, in which no layer with a choice "
            "of weight bits makes one. Search with strategy='ompq', which compares "
            "features of any shape, or 'fisher'."
        )


def _has_holes(shape: Sequence[int | None]) -> bool:
    """Whether outputs [B, ..., C] are maps large enough for a hole."""
    return len(shape) == 4 and all(n is None or n >= LEAST_NODES for n in shape[1:3])


def _entropies(
    evaluator: Evaluator, names: Sequence[str], config: TopologicalEntropyConfig
) -> dict[str, float]:
    """Returns the topological entropy of each layer with maps; journals each batch."""
    case = evaluator.case
    options = {k: v for k, v in vars(config).items() if k.startswith("map_")}
    images = _of_one_class(evaluator, config.map_images)
    size = case.data.inputs.batch_size or BATCH
    batches = [images[i : i + size] for i in range(0, len(images), size)]
    for rows in batches:
        case.watch.expect(1, len(rows))
    found: dict[str, list[Any]] = {}
    births = _births(evaluator, names, config)
    for number, rows in enumerate(batches):
        seconds = 0.0

        def compute(rows: np.ndarray = rows) -> dict[str, list]:
            nonlocal seconds
            started = perf_counter()
            answer = births([tf.constant(a[rows]) for a in evaluator.held.inputs])
            case.meter.forward(len(rows))
            seconds = perf_counter() - started
            return answer

        key = {"births": list(names), "batch": number, **options}
        for name, own in case.journal.once(key, compute).items():
            found.setdefault(name, []).extend(own)
        case.watch.step(len(rows), seconds)
    return {
        name: float(np.mean([entropy(column) for column in np.transpose(own)]))
        for name, own in found.items()
    }


def _of_one_class(evaluator: Evaluator, count: int) -> np.ndarray:
    """Returns the first images of the class that the float model decides most often.

    The first output counts that scores several classes; without one the first images
    are returned.
    """
    found = [
        scores
        for scores, output in zip(
            evaluator.teacher, evaluator.judge.outputs, strict=True
        )
        if output.kind.decides and scores.ndim == 2 and scores.shape[-1] > 1
    ]
    if not found:
        return np.arange(min(count, evaluator.images))
    said = np.argmax(found[0], axis=-1)
    classes, counts = np.unique(said, return_counts=True)
    return np.flatnonzero(said == classes[np.argmax(counts)])[:count]


def _births(
    evaluator: Evaluator, names: Sequence[str], config: TopologicalEntropyConfig
) -> Any:
    """Returns a function: inputs -> layer -> step of the first hole, [B, channels]."""
    network = FloatPass(evaluator.hypernet, names)

    @tf.function(input_signature=[any_batch(evaluator.held.inputs)])
    def outputs(inputs: Any) -> dict[str, list[tf.Tensor]]:
        seen = network(inputs)[1]
        return {name: [y for _, y in own] for name, own in seen.items()}

    def births(inputs: Sequence[tf.Tensor]) -> dict[str, list]:
        found = {}
        for name, own in outputs(inputs).items():
            graphs = [as_graphs(np.asarray(made), config) for made in own]
            known = [each for each in graphs if each is not None]
            if known:  # maps of different calls may have different sizes
                found[name] = [
                    [birth(own, config.map_steps) for maps in image for own in maps]
                    for image in zip(*known, strict=True)
                ]
        return found

    return births


def as_graphs(
    outputs: np.ndarray, config: TopologicalEntropyConfig
) -> np.ndarray | None:
    """Turns feature maps [B, H, W, C] into symmetric adjacency matrices.

    Args:
        outputs: output of a layer, [B, ..., C].
        config: number of channels and nodes.

    Returns:
        [B, channels, nodes, nodes]; None where the outputs are not maps, or too small
        for a hole.
    """
    if not _has_holes(outputs.shape):
        return None
    channels = outputs.shape[-1]
    picks = np.linspace(0, channels - 1, min(config.map_channels, channels)).round()
    maps: Any = np.moveaxis(outputs[..., picks.astype(int)], -1, 1).astype("float64")
    side = min(maps.shape[2:])
    nodes = min(side, config.map_nodes)
    edges = np.linspace(0, side, nodes + 1).round().astype(int)
    for axis in (2, 3):
        maps = np.take(maps, np.arange(side), axis=axis)
        sums = np.add.reduceat(maps, edges[:-1], axis=axis)
        shape = [1] * 4
        shape[axis] = nodes
        maps = sums / np.diff(edges).reshape(shape)
    return np.maximum(maps, np.swapaxes(maps, 2, 3))
