"""The best of some policies, by measuring and fine-tuning them: successive halving."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.values import Bits

SHARES = (0.25, 0.5, 1.0)  # of the steps, or of the images, round by round


def halve(
    policies: Sequence[Bits],
    evaluator: Evaluator,
    risk: str,
    steps: int = 0,
    learning_rate: float = 0.01,
    batch_size: int = 64,
) -> list[tuple[Bits, np.ndarray]]:
    """Compares policies, the better half each time with twice the effort.

    With steps each is fine-tuned anew, for a quarter, half and all of them, and
    measured on all images; without, it is measured on a quarter, half and all.

    Args:
        policies: at least one; none twice.
        evaluator: measures them.
        risk: the column of `Measured` that is compared.
        steps: of fine-tuning in the last round; 0: without training.
        learning_rate: of fine-tuning; it falls to zero.
        batch_size: images of a step.

    Returns:
        Those of the last round, with their risk on each image [images], the best first;
        two at least where there are two.
    """
    left = list(policies)
    ranked: list[tuple[Bits, np.ndarray]] = []
    for share in SHARES:
        last = share == SHARES[-1]
        images = evaluator.images
        if not steps:
            images = math.ceil(share * images)
        training = {"learning_rate": learning_rate, "batch_size": batch_size}
        measured = [
            evaluator.measure(
                bits, math.ceil(share * steps), images, **(training if steps else {})
            ).column(risk)
            for bits in left
        ]
        order = sorted(range(len(left)), key=lambda i: float(measured[i].mean()))
        kept = order if last else order[: max(2, math.ceil(len(left) / 2))]
        ranked = [(left[i], measured[i]) for i in kept]
        left = [bits for bits, _ in ranked]
    return ranked
