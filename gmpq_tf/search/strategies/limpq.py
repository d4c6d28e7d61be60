"""LIMPQ: values choices by the step sizes that quantizers learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.search.activations import (
    MEASURED,
    TIED,
    bonds_of,
    check_activations,
    evaluator_of,
    with_activations,
)
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number, check_whole
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.strategies.one_shot import ExploreConfig, explored, random_draws
from gmpq_tf.search.values import Bits, Valued

LEARNED = "learned"
LOOKED_AT = 64  # images whose labels are inspected to find their kind


@dataclass(frozen=True)
class LIMPQConfig(ExploreConfig):
    """Options of `ExploreConfig`, and how learned steps are compared.

    Args:
        alpha: Weight of the steps of weights, relative to those of activations.
        activations: learned takes the steps of activations too; tied gives the input of
            each layer the bits of its kernel; measured values each choice by the risk
            that it alone adds, as loss_delta does, in the float model.
        images: Images that risks are measured on; none: as many as loss_delta takes.
        normalize: Divide each step by the standard deviation of the kernel, or by the
            range of the widest candidate, so that layers of different scales can be
            compared.
    """

    alpha: float = 2.0
    normalize: bool = False
    activations: str = LEARNED
    images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_activations(self.activations, (LEARNED, TIED, MEASURED))
        if self.images is not None:
            check_whole("images", self.images, 1)
        check_number("alpha", self.alpha, 0.0)
        if not self.training_steps:
            raise StrategyError(
                "limpq reads steps that were trained. Received: training_steps=0. "
                "Pass 1 or more."
            )


def limpq(case: SearchCase, config: LIMPQConfig) -> Valued:
    """Values choices by the steps that quantizers learn: `-s_a[b]`, `-alpha s_w[b]`.

    One hypernet is trained whose branches have separate step sizes. Training steps
    alternate: one for each bit-width with that width in all layers, then one with bits
    drawn at random. A sensitive tensor learns a larger step size. Unlike in the
    official code, which sums the gradients of these passes, each is a training step of
    its own; BatchNormalization is shared by all bit-widths; and a choice whose step
    size is not smaller than that of fewer bits gets the value of fewer bits.

    Args:
        case: the float model, its choices and images.
        config: length of training, and how steps are compared.

    Returns:
        The values, without standard errors.

    Source: Tang et al., "Mixed-Precision Neural Network Quantization via Learned
    Layer-wise Importance", ECCV 2022.

    Raises:
        StrategyError: the kernel quantizer does not learn its steps.
    """
    name = case.quantizers.get("kernel_quantizer", DEFAULT_KERNEL_QUANTIZER)
    if not kernel_method(name).learned:  # before anything is trained
        raise StrategyError(
            "limpq reads the learned steps of kernels. "
            f"Received: kernel_quantizer={name!r}, which learns none. "
            "Search with kernel_quantizer='lsq', or another strategy."
        )
    bonds = bonds_of(case, config.activations)
    hypernet = explored(case, config, _draws(case), LOOKED_AT)()
    values: dict[str, Any] = {}
    for name, (weights, inputs) in case.problem.candidates.items():
        layer = hypernet.get_layer(name)
        of_w, of_x = layer.kernel_quantizer, layer.input_quantizer
        kernel = np.asarray(layer.kernel)
        sides = (
            {w: float(np.mean(of_w.step(kernel, of_w.bits.index(w)))) for w in weights},
            {a: of_x.step(of_x.bits.index(a)) for a in inputs},
        )
        scales = (1.0, 1.0)
        if config.normalize:
            widest = of_x.bits.index(max(inputs))
            low, high = of_x.codes(widest)
            scales = (float(kernel.std()), of_x.step(widest) * (high - low))
        values[name] = (
            _falling(sides[0], -config.alpha / max(scales[0], 1e-12)),
            _falling(sides[1], -1 / max(scales[1], 1e-12)),
        )
    if config.activations == LEARNED:
        return Valued(values)
    of_weights = {name: own[0] for name, own in values.items()}
    evaluator = evaluator_of(case, config)
    return with_activations(evaluator, config, of_weights, bonds, in_nats=False)


def _draws(case: SearchCase) -> Iterable[Bits]:
    """Yields without end: each bit-width in all layers, then one random policy."""
    pairs = case.problem.candidates
    free = [side for pair in pairs.values() for side in pair if len(side) > 1]
    widths = sorted(set().union(*free)) if free else []
    drawn = iter(random_draws(case))
    for width in cycle([*widths, None]):
        if width is None:
            yield next(drawn)
            continue
        yield {
            name: (_nearest(weights, width), _nearest(inputs, width))
            for name, (weights, inputs) in pairs.items()
        }


def _nearest(candidates: Sequence[int], width: int) -> int:
    return min(candidates, key=lambda own: abs(own - width))


def _falling(steps: dict[int, float], factor: float) -> dict[int, float]:
    """Returns bits -> factor times step, made non-decreasing in the bits."""
    values, best = {}, -np.inf
    for width in sorted(steps):
        best = max(best, factor * steps[width])
        values[width] = float(best)
    return values
