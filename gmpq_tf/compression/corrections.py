"""Corrections of a calibrated student without training, and the choice among them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.graph import is_frozen_norm, layer_macs, read_graph
from gmpq_tf.layer_kinds import Role
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.post_training import correct_biases, learn_rounding
from gmpq_tf.search.judge import Judge
from gmpq_tf.spelling import suggest
from gmpq_tf.transform import calibrate, quantize_model, snap_biases
from gmpq_tf.transform.calibrate import CalibrationError

AUTO = "auto"
# "auto" learns rounding only if a layer has so few weight bits (with more, nearest
# rounding is good enough), and if it takes at most so many multiply-adds.
COARSE_BITS, LEARNING_MACS = 3, 3e12
LEARNING_STEPS, LEARNING_BATCH = 300, 32
Batches = Sequence[Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Correction:
    """One way to correct a student; its last step is `snap_biases`.

    Args:
        run: (student, float model, images) -> changes the calibrated student.
        suits: (float model, policy) -> whether "auto" tries this correction.
    """

    run: Callable[[keras.Model, keras.Model, Batches], None]
    suits: Callable[[keras.Model, BitwidthPolicy], bool]


def _nearest(student: keras.Model, model: keras.Model, images: Batches) -> None:
    snap_biases(student)


def _statistics(student: keras.Model, model: keras.Model, images: Batches) -> None:
    snap_biases(student, images)


def _biases(student: keras.Model, model: keras.Model, images: Batches) -> None:
    correct_biases(student, model, images)
    snap_biases(student)


def _rounding(student: keras.Model, model: keras.Model, images: Batches) -> None:
    learn_rounding(
        student, model, images, steps=LEARNING_STEPS, batch_size=LEARNING_BATCH
    )
    _biases(student, model, images)


def _has_statistics(model: keras.Model, policy: BitwidthPolicy) -> bool:
    calls = read_graph(model).calls
    return any(c.role is Role.NORM and not is_frozen_norm(c) for c in calls)


def _is_coarse(model: keras.Model, policy: BitwidthPolicy) -> bool:
    coarse = any(bits.weight_bits <= COARSE_BITS for bits in policy.values())
    macs = 3 * LEARNING_STEPS * LEARNING_BATCH * sum(layer_macs(model).values())
    return coarse and macs <= LEARNING_MACS


# The cheapest first, since the first of equally good ones is taken.
CORRECTIONS: dict[str, Correction] = {
    "none": Correction(_nearest, lambda model, policy: True),
    "statistics": Correction(_statistics, _has_statistics),
    "biases": Correction(_biases, lambda model, policy: True),
    "rounding": Correction(_rounding, _is_coarse),
}


@dataclass(frozen=True)
class Mended:
    """A corrected student, and the corrections that were tried.

    Args:
        student: quantized, calibrated and corrected, with rounded biases.
        correction: the correction that was used, a key of `CORRECTIONS`.
        divergences: correction -> mean divergence of the student's outputs from the
            float model's, in nats (for numbers in variances); {} if one was given.
    """

    student: keras.Model
    correction: str
    divergences: Mapping[str, float]


def make_student(
    model: keras.Model,
    policy: BitwidthPolicy,
    images: Batches,
    held: Batches,
    correction: str = AUTO,
    say: Say = lambda text: None,
) -> Mended:
    """Quantize, calibrate and correct a model; "auto" chooses the best correction.

    That is the one with the smallest `mean_x KL(float(x) || student(x))` on images that
    are used for nothing else. Labels are not used.

    Args:
        model: the float model.
        policy: bits of its layers.
        images: batches of inputs for measuring ranges, statistics and biases.
        held: other batches, on which corrections are compared.
        correction: "auto", or a key of `CORRECTIONS`.
        say: called with a text after each step.

    Raises:
        ValueError: an unknown correction; the nearest is named.
        CalibrationError: images or outputs are not finite.
    """
    check_correction(correction)
    student = quantize_model(model, policy)
    calibrate(student, images)
    if correction != AUTO:
        CORRECTIONS[correction].run(student, model, images)
        return Mended(student, correction, {})
    names = [n for n, row in CORRECTIONS.items() if row.suits(model, policy)]
    before = _values(student)
    best: tuple[float, str, list[np.ndarray], list] = (np.inf, names[0], [], [])
    divergences: dict[str, float] = {}
    measure = _divergence_from(model, held)
    for name in names:
        _restore(student, before)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            CORRECTIONS[name].run(student, model, images)
        gap = divergences[name] = measure(student)
        say(f"  {name}: {gap:.4g} from the float model")
        if gap < best[0]:
            best = (gap, name, _values(student), caught)
    if not np.isfinite(best[0]):
        raise CalibrationError(
            "The outputs of a student must be finite. Received: NaN or infinite ones "
            f"whatever corrects it ({', '.join(names)}). Check the images and the "
            "model's weights."
        )
    _restore(student, best[2])
    for each in best[3]:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return Mended(student, best[1], divergences)


def check_correction(name: str) -> None:
    """Requires "auto" or the name of a correction.

    Raises:
        ValueError: the name is unknown; the nearest is given.
    """
    known = (AUTO, *CORRECTIONS)
    if name not in known:
        raise ValueError(
            f"correction must be one of {', '.join(known)}. "
            f"Received: correction={name!r}. {suggest(str(name), known)}"
        )


def _values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(variable) for variable in model.variables]


def _restore(model: keras.Model, values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)


def _divergence_from(
    model: keras.Model, held: Batches
) -> Callable[[keras.Model], float]:
    """A function student -> mean divergence of its outputs from the float model's."""
    teacher = [_outputs(model, batch) for batch in held]
    joined = [np.concatenate(column) for column in zip(*teacher, strict=True)]
    judge = Judge(model, joined)

    def measure(student: keras.Model) -> float:
        forward = tf.function(lambda x: student(x, training=False))
        gaps = [
            np.asarray(judge.divergence(keras.tree.flatten(forward(batch)), known))
            for batch, known in zip(held, teacher, strict=True)
        ]
        mean = float(np.concatenate(gaps).mean())
        return mean if np.isfinite(mean) else np.inf

    return measure


def _outputs(model: keras.Model, batch: Any) -> list[np.ndarray]:
    found = keras.tree.flatten(model(batch, training=False))
    return [np.asarray(each, "float32") for each in found]
