"""Second derivatives of a risk: traces of Hessians by Hutchinson's method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.float_pass import FloatPass, any_batch

PRODUCT_COST = 2.5  # cost of a Hessian-vector product, in training steps


def curvatures(
    risk: Callable[[], tf.Tensor],
    variables: Sequence[Any],
    vectors: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """`v' (H v)` of each variable, with H the Hessian of a risk in all variables.

    Args:
        risk: computes a scalar from the variables.
        variables: TensorFlow variables or tensors that it is computed from.
        vectors: directions v, of the shapes of the variables.

    Returns:
        One scalar per variable. For random signs v (Rademacher vectors) its mean is the
        trace of the variable's block of H (Hutchinson's method); the variance is
        `2 (||H||_F^2 - sum_i h_ii^2)` of that block, plus terms of the blocks beside
        it.
    """
    sources = list(variables)
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(sources)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(sources)
            loss = risk()
        gradients = inner.gradient(
            loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        slope = tf.add_n(
            [tf.reduce_sum(g * v) for g, v in zip(gradients, vectors, strict=True)]
        )
    products = outer.gradient(
        slope, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return [tf.reduce_sum(v * p) for v, p in zip(vectors, products, strict=True)]


def rademacher(shape: Sequence[int], seed: Sequence[int]) -> tf.Tensor:
    """-1 or 1 with equal probability, float32 of a shape, fixed by the seed [2]."""
    drawn = tf.random.stateless_uniform(shape, seed, 0, 2, tf.int32)
    return tf.cast(2 * drawn - 1, tf.float32)


def kernel_traces(
    evaluator: Evaluator, names: Iterable[str], probes: int, images: int, measure: str
) -> dict[str, np.ndarray]:
    """Hutchinson's samples of the trace of the Hessian of each kernel.

    The Hessian is that of the mean risk over some images in the float model; all
    kernels are sampled at once. With `divergence` it is the Gauss-Newton matrix, since
    the divergence is 0 at the float weights; so samples of the whole trace are negative
    only by rounding.

    Args:
        evaluator: evaluator of the float model, with labels for "task".
        names: names of the layers.
        probes: number of random vectors; each gives one sample.
        images: number of images.
        measure: "divergence" or "task".

    Returns:
        Layer -> samples [probes].

    Raises:
        StrategyError: an operation of the model has no second derivative, or one that
            is not finite.
    """
    case, names = evaluator.case, list(names)
    images = min(images, evaluator.images)
    if not names:
        return {}
    case.watch.expect(probes, images)
    found: dict[str, list[float]] = {name: [] for name in names}
    product = None
    for probe in range(probes):
        started, fresh = perf_counter(), False

        def compute(probe: int = probe) -> list[float]:
            nonlocal product, fresh
            product, fresh = product or _product(evaluator, names, measure), True
            return _sample(evaluator, product, images, probe)

        key = {"trace": names, "probe": probe, "images": images, "measure": measure}
        answer = case.journal.once(key, compute)
        case.watch.step(images, perf_counter() - started if fresh else 0.0)
        for name, value in zip(names, answer, strict=True):
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def _product(evaluator: Evaluator, names: Sequence[str], measure: str) -> Any:
    """A function (inputs, targets, seed) -> `v' (H v)` of each kernel, [names].

    The risk is summed over images. Targets are, for each output, labels or the outputs
    of the float model.
    """
    network, judge = FloatPass(evaluator.hypernet, names), evaluator.judge
    kernels = [evaluator.hypernet.get_layer(name).kernel.value for name in names]
    risk_of = judge.task if measure == "task" else judge.divergence
    known = judge.targets if measure == "task" else evaluator.teacher
    pair = tf.TensorSpec([2], tf.int32)

    @tf.function(
        input_signature=[any_batch(evaluator.held.inputs), any_batch(known), pair]
    )
    def product(inputs: Any, targets: Any, seed: tf.Tensor) -> tf.Tensor:
        vectors = [
            rademacher(kernel.shape, tf.stack([seed[0] * 65_536 + index, seed[1]]))
            for index, kernel in enumerate(kernels)
        ]

        def risk() -> tf.Tensor:
            return tf.reduce_sum(risk_of(network(inputs)[0], targets))

        return tf.stack(curvatures(risk, kernels, vectors))

    return product


def _sample(evaluator: Evaluator, product: Any, images: int, probe: int) -> list[float]:
    """One sample of each kernel's trace, for the mean risk over images."""
    held, judge = evaluator.held, evaluator.judge
    targets = judge.targets if judge.labelled else evaluator.teacher
    seed = tf.constant([evaluator.case.seed, probe], tf.int32)
    total = 0.0
    for rows in evaluator.rows(images):
        try:
            total = total + product(
                [tf.constant(a[rows]) for a in held.inputs],
                [tf.constant(own[rows]) for own in targets],
                seed,
            )
        except LookupError as error:  # no gradient is registered
            raise StrategyError(
                "The Hessian needs second derivatives of every operation of the model. "
                f"Received: {evaluator.case.model.name!r}, where one is missing: "
                f"{error}. Search with strategy='fisher', which needs first "
                "derivatives, or 'loss_delta', which needs none."
            ) from error
    evaluator.case.meter.training(images, PRODUCT_COST)
    values = np.asarray(total) / images
    if not np.isfinite(values).all():
        raise StrategyError(
            "Second derivatives must be finite. "
            f"Received: {evaluator.case.model.name!r}, of which some are NaN or "
            "infinite. Check the images and the model's weights."
        )
    return [float(f"{value:.7g}") for value in values]
