"""OMPQ: values bits of a layer by how its features differ from other layers'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.search.activations import (
    ActivationsConfig,
    bonds_of,
    evaluator_of,
    with_activations,
)
from gmpq_tf.search.case import WIDEST, SearchCase
from gmpq_tf.search.checks import check_number, check_whole
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.float_pass import FloatPass, any_batch
from gmpq_tf.search.values import Valued


@dataclass(frozen=True)
class OMPQConfig(ActivationsConfig):
    """Options of `ActivationsConfig`, and how features are compared.

    Args:
        beta: How fast importance falls with similarity.
        feature_images: Images whose features are compared; 2 or more.
    """

    beta: float = 10.0
    feature_images: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta", self.beta, 0.0)
        check_whole("feature_images", self.feature_images, 2)


def ompq(case: SearchCase, config: OMPQConfig) -> Valued:
    """Values bits b of kernels by `m_l b / 8`, m_l the orthogonality of layer l.

    `theta_l = exp(-beta sum_{k != l} ORM_lk)`, where ORM is the linear centered kernel
    alignment of the outputs of two layers, and m_l is the mean of theta over layer l
    and all later ones, as in the official code (the paper uses theta_l itself).
    Rounding errors are not measured. Unlike there, where bits are rounded from a linear
    program for the size of the file, the budgets choose among the candidates; and
    activations, which are fixed there, are measured or tied. Values are linear in the
    bits, so with a limit on one linear cost all layers but one get their fewest or most
    bits.

    Args:
        case: the float model, its choices and images.
        config: how features are compared, and how activations are valued.

    Returns:
        The values, and a column with the values of weights alone.

    Source: Ma et al., "OMPQ: Orthogonal Mixed Precision Quantization", AAAI 2023.
    """
    bonds = bonds_of(case, config.activations)
    candidates = case.problem.candidates
    evaluator = evaluator_of(case, config, config.feature_images)
    free = [name for name, (weights, _) in candidates.items() if len(weights) > 1]
    orm = _alignment(evaluator, free, config)
    importance = dict(zip(free, importances(orm, config.beta), strict=True))
    values = {
        name: {b: importance.get(name, 0.0) * b / WIDEST for b in weights}
        for name, (weights, _) in candidates.items()
    }
    return with_activations(evaluator, config, values, bonds, in_nats=False)


def alignment(grams: Sequence[np.ndarray]) -> np.ndarray:
    """Linear centered kernel alignment of features, [layers, layers], 0 to 1.

    `||X_j' X_i||_F^2 / (||X_i' X_i||_F ||X_j' X_j||_F)` for centered features X
    [images, features], computed from the Gram matrices `X X'`.

    Args:
        grams: Gram matrix [images, images] of each layer, centered or not.
    """
    if not grams:
        return np.zeros((0, 0))
    images = len(grams[0])
    center = np.eye(images) - 1 / images
    rows = np.stack([(center @ g @ center).ravel() for g in grams])
    norms = np.linalg.norm(rows, axis=1)
    products = rows @ rows.T
    scales = np.outer(norms, norms)
    return np.divide(products, scales, out=np.zeros_like(products), where=scales > 0)


def importances(orm: np.ndarray, beta: float) -> list[float]:
    """Returns m of each layer, in units of the largest theta, which avoids underflow.

    Args:
        orm: from `alignment`, [layers, layers].
        beta: how fast importance falls with similarity.
    """
    if not len(orm):
        return []
    likeness = orm.sum(axis=1) - np.diag(orm)
    theta = np.exp(-beta * (likeness - likeness.min()))
    return [float(theta[i:].mean()) for i in range(len(theta))]


def _alignment(
    evaluator: Evaluator, names: Sequence[str], config: OMPQConfig
) -> np.ndarray:
    """Returns `alignment` of the layers, from the journal if it holds it."""
    case, images = evaluator.case, config.feature_images
    images, seconds = min(images, evaluator.images), 0.0
    case.watch.expect(1, images)

    def compute() -> list[list[float]]:
        nonlocal seconds
        started = perf_counter()
        found = alignment(_grams(evaluator, names, images))
        case.meter.forward(images)
        seconds = perf_counter() - started
        return [[float(f"{v:.7g}") for v in row] for row in found]

    answer = case.journal.once({"alignment": list(names), "images": images}, compute)
    case.watch.step(images, seconds)
    return np.array(answer).reshape(len(names), len(names))


def _grams(evaluator: Evaluator, names: Sequence[str], images: int) -> list[np.ndarray]:
    """Returns the Gram matrix of each layer's output, [images, images]."""
    network = FloatPass(evaluator.hypernet, names)
    arrays = [array[:images] for array in evaluator.held.inputs]

    @tf.function(input_signature=[any_batch(arrays)])
    def grams(inputs: Any) -> dict[str, tf.Tensor]:
        parts: dict[str, list[tf.Tensor]] = {}
        for rows in evaluator.rows(images):
            seen = network([own[rows] for own in inputs])[1]
            for name, own in seen.items():
                flat = [tf.reshape(y, [len(range(images)[rows]), -1]) for _, y in own]
                parts.setdefault(name, []).append(tf.concat(flat, axis=1))
        found = {}
        for name, own in parts.items():
            features = tf.cast(tf.concat(own, axis=0), tf.float32)
            features -= tf.reduce_mean(features, axis=0)
            found[name] = tf.matmul(features, features, transpose_b=True)
        return found

    found = grams([tf.constant(array) for array in arrays])
    return [np.asarray(found[name], "float64") for name in names]
