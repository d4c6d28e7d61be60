"""CLADO: the risk that each choice adds, and the interaction of pairs of choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from gmpq_tf.search.activations import (
    ActivationsConfig,
    bonds_of,
    evaluator_of,
)
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_whole
from gmpq_tf.search.deltas import default_images
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.values import Bits, Bonds, Choice, Valued

# The choices of a tensor, or of a layer whose two tensors are tied: choice -> (weight
# bits, activation bits) of the layer, None for a side that the choice leaves unchanged.
Options = Mapping[Choice, tuple[int | None, int | None]]


@dataclass(frozen=True)
class CLADOConfig(ActivationsConfig):
    """Options of `ActivationsConfig`, and how many tensors are measured in pairs.

    Args:
        activations: tied gives the input of each layer the bits of its kernel, so that
            a choice covers both; measured makes activations choices of their own, which
            are paired with all others.
        paired: Number of tensors (with tied: of layers) whose choices are measured in
            pairs: those with the largest risks. Risks of the others are only added up.
        pair_images: Images that pairs are measured on; none: a quarter of images.
    """

    paired: int = 16
    pair_images: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("paired", self.paired, 0)
        if self.pair_images is not None:
            check_whole("pair_images", self.pair_images, 1)


def clado(case: SearchCase, config: CLADOConfig) -> Valued:
    """Values policies by the risk of their choices and of pairs of choices.

    `value = -(sum_i L_i + sum_{i<j} O_ij)`, where `L_i` is the risk that a choice adds
    to the network at 8 bits and `O_ij = L_ij - L_i - L_j` the interaction of two. As a
    quadratic form of the choices this is made positive semidefinite by removing its
    negative eigenvalues, which are noise. Unlike in the paper, which pairs all layers,
    only the tensors with the largest risks are paired, because the number of pairs
    grows with the square; and pairs of choices of the same tensor, which never occur
    together, are 0 in the form.

    Args:
        case: the float model, its choices and images.
        config: images, and the number of paired tensors.

    Returns:
        The values; those of pairs are among the bonds.

    Source: Deng et al., "Mixed-Precision Quantization for Deep Vision Models with
    Integer Quadratic Programming", DAC 2025 (arXiv 2307.05657).
    """
    bonds = bonds_of(case, config.activations)
    evaluator = evaluator_of(case, config)
    tensors = [own for own in _tensors(case, bonds) if len(own) > 1]
    risks = _Risks(evaluator, config)
    risks.expect(sum(map(len, tensors)))
    risks.start()
    singles = [
        {choice: risks.of({choice: pair}) for choice, pair in own.items()}
        for own in tensors
    ]
    order = sorted(range(len(tensors)), key=lambda i: -max(singles[i].values()))
    paired = sorted(order[: config.paired])
    fewer = config.pair_images or max(risks.images // 4, 1)
    crossed = _crossed(risks, [tensors[i] for i in paired], fewer)
    values: Any = {
        name: tuple(dict.fromkeys(side, 0.0) for side in pair)
        for name, pair in case.problem.candidates.items()
    }
    alone: dict[Choice, float] = {c: r for own in singles for c, r in own.items()}
    smooth, pairs = semidefinite(
        [[(c, alone[c]) for c in tensors[i]] for i in paired], crossed
    )
    for (name, side, bits), risk in {**alone, **smooth}.items():
        values[name][side][bits] = -risk
    return Valued(
        values,
        bonds=Bonds(bonds.allowed, {both: -risk for both, risk in pairs.items()}),
        history=[[*a, *b, risk] for (a, b), risk in crossed.items()],
    )


def semidefinite(
    tensors: Sequence[Sequence[tuple[Choice, float]]],
    crossed: Mapping[tuple[Choice, Choice], float],
) -> tuple[dict[Choice, float], dict[tuple[Choice, Choice], float]]:
    """Returns the nearest risks whose quadratic form has no negative eigenvalue.

    Args:
        tensors: for each tensor its choices with their risks.
        crossed: interaction of two choices of different tensors.

    Returns:
        Risks of the choices, and interactions of pairs.
    """
    choices = [choice for own in tensors for choice, _ in own]
    if not choices:
        return {}, {}
    place = {choice: i for i, choice in enumerate(choices)}
    form = np.diag([2.0 * risk for own in tensors for _, risk in own])
    for (a, b), risk in crossed.items():
        form[place[a], place[b]] = form[place[b], place[a]] = risk
    roots, vectors = np.linalg.eigh(form)
    form = (vectors * np.maximum(roots, 0.0)) @ vectors.T
    # The risk of a policy is x' form x / 2, where x is 1 for its choices (one for each
    # tensor) and 0 for all others.
    alone = {choice: float(form[i, i] / 2) for choice, i in place.items()}
    return alone, {(a, b): float(form[place[a], place[b]]) for a, b in crossed}


def _tensors(case: SearchCase, bonds: Bonds) -> list[Options]:
    """Returns the choices of each tensor, or of each layer with tied tensors."""
    found: list[Options] = []
    for name, (weights, inputs) in case.problem.candidates.items():
        if name in bonds.allowed:
            found.append({(name, 0, w): (w, a) for w, a in bonds.allowed[name]})
        else:
            found.append({(name, 0, w): (w, None) for w in weights})
            found.append({(name, 1, a): (None, a) for a in inputs})
    return found


class _Risks:
    """Measures the risk that one or two choices add to the policy of 8 bits."""

    def __init__(self, evaluator: Evaluator, config: CLADOConfig) -> None:
        self.evaluator, self.measure = evaluator, config.measure
        self.images = config.images or default_images(evaluator.case)
        self.context = evaluator.case.context()

    def expect(self, count: int, images: int | None = None) -> None:
        """Announces `count` measurements, and one of the policy, for progress."""
        self.evaluator.expect(count + 1, 0, images or self.images)

    def start(self, images: int | None = None) -> None:
        """Measures the risk of the policy that choices are compared with."""
        self.base = self._risk(self.context, images)

    def of(self, taken: Options, images: int | None = None) -> float:
        """Returns the risk that some choices together add."""
        bits = dict(self.context)
        for (name, *_), pair in taken.items():
            known = bits[name]
            bits[name] = (pair[0] or known[0], pair[1] or known[1])
        return self._risk(bits, images) - self.base

    def _risk(self, bits: Bits, images: int | None) -> float:
        measured = self.evaluator.measure(bits, 0, images or self.images)
        return float(measured.column(self.measure).mean())


def _crossed(
    risks: _Risks, tensors: Sequence[Options], images: int
) -> dict[tuple[Choice, Choice], float]:
    """Returns the interaction of each two choices of different tensors."""
    both = [
        (one, other)
        for own, others in combinations(tensors, 2)
        for one, other in product(own.items(), others.items())
    ]
    if not both:
        return {}
    risks.expect(len(both) + sum(map(len, tensors)), images)
    risks.start(images)
    alone = {
        choice: risks.of({choice: pair}, images)
        for own in tensors
        for choice, pair in own.items()
    }
    return {
        (a[0], b[0]): risks.of(dict([a, b]), images) - alone[a[0]] - alone[b[0]]
        for a, b in both
    }
