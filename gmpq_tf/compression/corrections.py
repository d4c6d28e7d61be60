"""Corrections of a calibrated student without training, and the choice among them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.graph import is_frozen_norm, layer_macs, read_graph
from gmpq_tf.layer_kinds import Role
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.post_training import correct_biases, learn_rounding, match_statistics
from gmpq_tf.search.judge import Judge
from gmpq_tf.spelling import suggest
from gmpq_tf.task import match_labels
from gmpq_tf.transform import calibrate, quantize_model, snap_biases
from gmpq_tf.transform.calibrate import CalibrationError

AUTO = "auto"
# Learned rounding is for kernels of at most 4 bits (with more, nearest rounding is good
# enough). "auto" tries it only if a layer has at most 3, and if learning takes at most
# so many multiply-adds.
LEARNED_BITS, COARSE_BITS, LEARNING_MACS = 4, 3, 3e12
LEARNING_STEPS, LEARNING_BATCH = 300, 32
# Labels decide against the float model if a loss is lower by so many standard errors.
SURE = 3.0
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


def _matched(student: keras.Model, model: keras.Model, images: Batches) -> None:
    match_statistics(student, model, images, fit="spread")
    snap_biases(student)


def _rounding(student: keras.Model, model: keras.Model, images: Batches) -> None:
    learn_rounding(
        student,
        model,
        images,
        steps=LEARNING_STEPS,
        batch_size=LEARNING_BATCH,
        most_bits=LEARNED_BITS,
    )
    follow = _biases if _has_statistics(model) else _matched
    follow(student, model, images)


def _has_statistics(model: keras.Model) -> bool:
    """Whether a BatchNormalization, not frozen, has statistics of data.

    One that was folded into its layer, and remains as an identity, has none: statistics
    measured for it would undo the factors that the kernel was multiplied by.
    """
    norms = [c for c in read_graph(model).calls if c.role is Role.NORM]
    return any(not is_frozen_norm(c) and not _is_identity(c.layer) for c in norms)


def _is_identity(norm: keras.layers.BatchNormalization) -> bool:
    """Whether means are 0 and variances 1, or 1 with the epsilon that is added."""
    off = np.abs(np.asarray(norm.moving_variance, "float64") - 1.0).max()
    return not np.any(norm.moving_mean) and bool(off <= 1.01 * norm.epsilon)


def _is_coarse(model: keras.Model, policy: BitwidthPolicy) -> bool:
    bits = {name: own.weight_bits for name, own in policy.items()}
    learned = [m for n, m in layer_macs(model).items() if bits[n] <= LEARNED_BITS]
    macs = 3 * LEARNING_STEPS * LEARNING_BATCH * sum(learned)
    return min(bits.values()) <= COARSE_BITS and macs <= LEARNING_MACS


# The cheapest first, since the first of equally good ones is taken.
CORRECTIONS: dict[str, Correction] = {
    "none": Correction(_nearest, lambda model, policy: True),
    "statistics": Correction(_statistics, lambda model, policy: _has_statistics(model)),
    "biases": Correction(_biases, lambda model, policy: True),
    "matched": Correction(_matched, lambda model, policy: True),
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
        losses: correction -> mean cross-entropy of the student and the labels, in nats;
            {} where labels did not count.
    """

    student: keras.Model
    correction: str
    divergences: Mapping[str, float]
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass
class _Tried:
    """What is known of a correction on the images that compare them.

    Args:
        gap: mean divergence from the float model's outputs; inf: not finite.
        losses: cross-entropy of each image and its label, [images]; [0] without labels.
        values: of the student's variables, as long as it may be chosen.
        warned: the warnings of making it.
    """

    gap: float
    losses: np.ndarray
    values: list[np.ndarray] = field(default_factory=list)
    warned: list[warnings.WarningMessage] = field(default_factory=list)


def make_student(
    model: keras.Model,
    policy: BitwidthPolicy,
    images: Batches,
    held: Batches,
    correction: str = AUTO,
    say: Say = lambda text: None,
    labels: Any = None,
    output_kinds: Any = None,
) -> Mended:
    """Quantizes, calibrates and corrects a model; "auto" chooses the best correction.

    The best is the one with the smallest `mean_x KL(float(x) || student(x))` on images
    that are used for nothing else. Labels of these images can overrule that, if the
    float model decides more than half of them right: the correction of the lowest
    cross-entropy is taken if it is lower, image by image, by more than `SURE` standard
    errors of the mean difference. So statistics that are measured again are chosen
    where they are better than those that the float model was stored with.

    Args:
        model: the float model.
        policy: bits of its layers.
        images: batches of inputs for measuring ranges, statistics and biases.
        held: other batches, on which corrections are compared.
        correction: "auto", or a key of `CORRECTIONS`.
        say: called with a text after each step.
        labels: of all images of `held`, as for `match_labels`; None: there are none.
        output_kinds: what the outputs mean, as `outputs_of` takes it; None: derived.

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
    tried: dict[str, _Tried] = {}
    measure = _measure(student, model, held, labels, output_kinds)
    for name in names:
        _restore(student, before)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            CORRECTIONS[name].run(student, model, images)
        found = tried[name] = measure()
        found.values, found.warned = _values(student), caught
        _forget(tried)
        loss = f", loss {found.losses.mean():.4g}" if len(found.losses) else ""
        say(f"  {name}: {found.gap:.4g} from the float model{loss}")
    if not np.isfinite(min(each.gap for each in tried.values())):
        raise CalibrationError(
            "The outputs of a student must be finite. Received: NaN or infinite ones "
            f"whatever corrects it ({', '.join(names)}). Check the images and the "
            "model's weights."
        )
    chosen = _choose(tried, say)
    _restore(student, tried[chosen].values)
    for each in tried[chosen].warned:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return Mended(
        student,
        chosen,
        {name: each.gap for name, each in tried.items()},
        {n: float(each.losses.mean()) for n, each in tried.items() if len(each.losses)},
    )


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


def labels_of_all(model: keras.Model, labels: Any) -> Any:
    """Returns the labels by which corrections are compared; None if an output has none.

    Args:
        model: the float model.
        labels: as for `match_labels`.
    """
    missing = any(own is None for own in match_labels(model, labels))
    return None if missing else labels


def _values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(variable) for variable in model.variables]


def _restore(model: keras.Model, values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)


def _nearest_to_float(tried: Mapping[str, _Tried]) -> str:
    return min(tried, key=lambda name: tried[name].gap)


def _least_loss(tried: Mapping[str, _Tried]) -> str:
    """The correction of the least loss, and without labels the nearest to float."""
    finite = [n for n, t in tried.items() if np.isfinite(t.gap) and len(t.losses)]
    if not finite:
        return _nearest_to_float(tried)
    return min(finite, key=lambda name: tried[name].losses.mean())


def _forget(tried: Mapping[str, _Tried]) -> None:
    """Drops the variables of students that will not be chosen: they may be large."""
    kept = {_nearest_to_float(tried), _least_loss(tried)}
    for name, each in tried.items():
        if name not in kept:
            each.values = []


def _choose(tried: Mapping[str, _Tried], say: Say) -> str:
    """The correction nearest to the float model, unless labels clearly say another."""
    nearest, best = _nearest_to_float(tried), _least_loss(tried)
    if best == nearest:
        return nearest
    gained = tried[nearest].losses - tried[best].losses
    error = gained.std(ddof=1) / np.sqrt(len(gained)) if len(gained) > 1 else np.inf
    if gained.mean() <= SURE * error:
        return nearest
    say(
        f"  labels: the loss of {best} is {gained.mean():.4g} below that of {nearest}, "
        f"with a standard error of {error:.2g}"
    )
    return best


def _measure(
    student: keras.Model,
    model: keras.Model,
    held: Batches,
    labels: Any,
    output_kinds: Any,
) -> Callable[[], _Tried]:
    """A function -> the student's distance from the float model now, and its losses."""
    teacher = [_outputs(model, batch) for batch in held]
    joined = [np.concatenate(column) for column in zip(*teacher, strict=True)]
    judge = Judge(model, joined, labels_of_all(model, labels), output_kinds)
    targets = judge.targets if judge.decides else []
    # Labels of other classes than the model's, such as folders in another order, would
    # choose whatever is least sure.
    if targets and judge.right(joined, targets).mean() <= 0.5:
        targets = []

    # Corrections change variables alone, so one trace serves them all.
    forward = tf.function(lambda x: student(x, training=False), autograph=False)

    def measure() -> _Tried:
        gaps, losses, start = [], [np.zeros(0)], 0
        for batch, known in zip(held, teacher, strict=True):
            found = keras.tree.flatten(forward(batch))
            gaps.append(np.asarray(judge.divergence(found, known)))
            end = start + len(known[0])
            if targets:
                own = [each[start:end] for each in targets]
                losses.append(np.asarray(judge.task(found, own), "float64"))
            start = end
        mean = float(np.concatenate(gaps).mean())
        return _Tried(mean if np.isfinite(mean) else np.inf, np.concatenate(losses))

    return measure


def _outputs(model: keras.Model, batch: Any) -> list[np.ndarray]:
    found = keras.tree.flatten(model(batch, training=False))
    return [np.asarray(each, "float32") for each in found]
