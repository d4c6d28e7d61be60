"""Tables of what each choice adds to a risk if all other choices stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gmpq_tf.budget import Candidates
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.evaluator import Evaluator, Measured
from gmpq_tf.search.values import Bits, Samples, Valued, Values

# Multiply-adds that measuring a table may take by default, and bounds on its images.
MACS, LEAST_IMAGES, MOST_IMAGES = 3e12, 32, 1024
COLUMNS = {
    "task": "task",
    "divergence": "divergence",
    "attribution": "generalization",
    "rank_distance": "rank_distance",
}


def delta_table(
    evaluator: Evaluator,
    context: Bits,
    candidates: Candidates,
    columns: Mapping[str, float],
    most: float = math.inf,
    steps: int = 0,
    images: int | None = None,
    **training: Any,
) -> Valued:
    """Values every choice by the negative of the risk that it adds to a policy.

    `value(b) = -(risk(one tensor at b bits) - risk(context))`, made monotone: fewer
    bits are never valued more than more bits, since such a difference is noise.

    Args:
        evaluator: measures policies.
        context: the policy that each choice is put into.
        candidates: (weight bits, activation bits) each layer may take.
        columns: column of `Measured` -> weight in the risk; the first one is recorded.
        most: upper bound of the values.
        steps: steps of fine-tuning before each measurement, also of the context.
        images: number of images to measure on; None: all of the evaluator's.
        **training: `learning_rate` and `batch_size` of fine-tuning.

    Returns:
        The values, with samples and a column for each risk.
    """
    risk = next(iter(columns))
    different = [b for *_, b in changes(context, candidates) if b != context]
    evaluator.expect(1 + len(different), steps, images, **training)
    base = evaluator.measure(context, steps, images, **training)
    found: dict = {column: {n: ({}, {}) for n in candidates} for column in columns}
    history = [_record("", base, risk)]
    for name, which, width, bits in changes(context, candidates):
        if bits == context:
            measured = base
        else:
            measured = evaluator.measure(bits, steps, images, **training)
        for column in columns:
            added = measured.column(column) - base.column(column)
            found[column][name][which][width] = -added
        history.append(_record(f"{name} {'WA'[which]}{width}", measured, risk))
    samples: dict[str, Any] = {
        name: tuple(
            {
                width: sum(columns[c] * found[c][name][which][width] for c in columns)
                for width in found[risk][name][which]
            }
            for which in (0, 1)
        )
        for name in candidates
    }
    return Valued(
        monotone(samples, most),
        samples,
        {COLUMNS[c]: _means(found[c]) for c in columns},
        history=tuple(history),
    )


def default_images(case: SearchCase) -> int:
    """Number of images with which a table takes 3e12 multiply-adds; 32 to 1024."""
    context = case.context()
    changed = [bits for *_, bits in changes(context, case.problem.candidates)]
    evaluations = 1 + sum(bits != context for bits in changed)
    macs = case.problem.full_bit_ops() / 1024  # at 32 x 32 bits
    images = int(MACS / max(evaluations * macs, 1.0))
    return min(max(images, LEAST_IMAGES), MOST_IMAGES)


def changes(
    context: Bits, candidates: Candidates
) -> Iterator[tuple[str, int, int, Bits]]:
    """Every policy that differs from `context` in one tensor at most.

    Yields:
        (layer, 0 for its weights or 1 for its activations, bit-width, policy).
    """
    for name, pair in candidates.items():
        for which in (0, 1):
            for width in pair[which]:
                own = list(context[name])
                own[which] = width
                yield name, which, width, {**context, name: (own[0], own[1])}


def monotone(samples: Samples, most: float) -> Values:
    """Means of samples, at most `most`, and never larger for fewer bits."""
    values: dict[str, Any] = {}
    for name, pair in samples.items():
        sides = []
        for side in pair:
            worst, own = most, {}
            for width in sorted(side, reverse=True):
                worst = min(worst, float(np.mean(side[width])))
                own[width] = worst
            sides.append({width: own[width] for width in side})
        values[name] = tuple(sides)
    return values


def _means(samples: Samples) -> Values:
    means: dict[str, Any] = {
        name: tuple({w: float(np.mean(v)) for w, v in side.items()} for side in pair)
        for name, pair in samples.items()
    }
    return means


def _record(change: str, measured: Measured, risk: str) -> dict:
    return {
        "change": change,
        "risk": float(measured.column(risk).mean()),
        "accuracy": measured.accuracy,
        "divergence": float(measured.divergence.mean()),
    }
