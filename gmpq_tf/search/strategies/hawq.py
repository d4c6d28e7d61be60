"""Value of a choice: curvature of the risk times the error of rounding (HAWQ-V2)."""

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
    """As `ActivationsConfig`, and how curvature is estimated.

    Args:
        probes: Random vectors that each trace is the mean over.
        trace_images: Images whose risk the Hessian is of.
    """

    probes: int = 50
    trace_images: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("probes", self.probes, 1)
        check_whole("trace_images", self.trace_images, 1)


def hawq(case: SearchCase, config: HAWQConfig) -> Valued:
    """Values bits of kernels by `-|tr(H_l)| / n_l ||Q(W_l) - W_l||^2 / 2` (HAWQ-V2).

    H is the Hessian of the mean risk with respect to the n weights of a kernel, in the
    float model; its trace by Hutchinson's method. Half of the product is the risk that
    rounding adds, if its error points nowhere in particular: then it compares with the
    measured risk of activations. Unlike the paper, which values activations by traces
    of their own, their risk is measured, or they are tied as in HAWQ-V3; and of a
    trace that comes out negative the size counts.

    Args:
        case: the float model, its choices and images.
        config: how curvature is estimated, and activations valued.

    Returns:
        The values, and a column of those of the weights.

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
    """Values of a kernel's bits, `-|tr(H) / n| ||Q(W) - W||^2 / 2`.

    Args:
        trace: of the Hessian, per weight.
        errors: bits -> squared error of all weights.
    """
    return {bits: -0.5 * abs(trace) * error for bits, error in errors.items()}


def _errors(evaluator: Evaluator, names: list[str]) -> dict:
    """Of each kernel its size, and the squared error of rounding it to its bits."""
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
