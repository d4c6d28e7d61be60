"""HAWQ-V2: values choices by the curvature of the risk times the rounding error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from gmpq_tf.search.activations import (
    ActivationsConfig,
    bonds_of,
    evaluator_of,
    with_activations,
)
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_whole
from gmpq_tf.search.curvature import kernel_traces
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.float_pass import quantized_kernel
from gmpq_tf.search.values import Valued


@dataclass(frozen=True)
class HAWQConfig(ActivationsConfig):
    """Options of `ActivationsConfig`, and how curvature is estimated.

    Args:
        probes: Number of random vectors that each trace is averaged over.
        trace_images: Number of images over whose mean risk the Hessian is taken.
    """

    probes: int = 50
    trace_images: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("probes", self.probes, 1)
        check_whole("trace_images", self.trace_images, 1)


def hawq(case: SearchCase, config: HAWQConfig) -> Valued:
    """Values bits of kernels by `-|tr(H_l)| / n_l ||Q(W_l) - W_l||^2 / 2` (HAWQ-V2).

    H is the Hessian of the mean risk with respect to the n weights of a kernel in the
    float model; Hutchinson's method estimates its trace. Half of the product is the
    risk that rounding adds if the rounding error has no preferred direction, so it can
    be compared with the measured risk of activations. Unlike in the paper, which values
    activations by their own traces, the risk of activations is measured, or they are
    tied as in HAWQ-V3; and the absolute value of a negative trace is used.

    Args:
        case: the float model, its choices and images.
        config: how curvature is estimated, and how activations are valued.

    Returns:
        The values, and a column with the values of weights alone.

    Source: Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural
    Networks", NeurIPS 2020; Yao et al., "HAWQ-V3", ICML 2021, for tied bits.
    """
    bonds = bonds_of(case, config.activations)
    candidates = case.problem.candidates
    evaluator = evaluator_of(case, config, config.trace_images)
    free = [name for name, (weights, _) in candidates.items() if len(weights) > 1]
    traces = kernel_traces(
        evaluator, free, config.probes, config.trace_images, config.measure
    )
    errors = case.journal.once(
        {"kernel errors": free}, lambda: _errors(evaluator, free)
    )
    values: dict[str, dict[int, float]] = {
        name: dict.fromkeys(weights, 0.0) for name, (weights, _) in candidates.items()
    }
    history = []
    for name in free:
        trace = float(np.mean(traces[name]))
        spread = float(np.std(traces[name]) / np.sqrt(max(config.probes - 1, 1)))
        squares = {int(b): error for b, error in errors[name]["errors"].items()}
        values[name] = perturbation(trace / errors[name]["weights"], squares)
        history.append({"layer": name, "trace": trace, "standard_error": spread})
    found = with_activations(evaluator, config, values, bonds, in_nats=True)
    return replace(found, history=(*history, *found.history))


def perturbation(trace: float, errors: Mapping[int, float]) -> dict[int, float]:
    """Returns bits -> value of a kernel, `-|tr(H) / n| ||Q(W) - W||^2 / 2`.

    Args:
        trace: trace of the Hessian over the number of weights, `tr(H) / n`.
        errors: bits -> squared error, summed over all weights.
    """
    return {bits: -0.5 * abs(trace) * error for bits, error in errors.items()}


def _errors(evaluator: Evaluator, names: list[str]) -> dict:
    """Returns the size of each kernel, and its squared rounding error at all bits."""
    found = {}
    for name in names:
        layer = evaluator.hypernet.get_layer(name)
        kernel = tf.convert_to_tensor(layer.kernel)
        found[name] = {
            "weights": int(np.prod(kernel.shape)),
            "errors": {
                str(bits): float(
                    tf.reduce_sum(tf.square(quantized_kernel(layer, bits) - kernel))
                )
                for bits in evaluator.case.problem.candidates[name][0]
            },
        }
    return found
