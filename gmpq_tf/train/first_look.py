"""Measures a float model before any training, to detect a wrong input scaling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.data import Dataset, InputScaling, pixel_affine
from gmpq_tf.data.datasets import spec_of
from gmpq_tf.task import Numbers, TaskError, classifier_kind
from gmpq_tf.train.recipe import make_loss
from gmpq_tf.transform.rewrite import flattened

IMAGES = 256
# Above this accuracy no other scaling can raise it much. Another scaling may still fit
# far better: a model that is right but hardly surer than chance (its cross-entropy is
# above UNSURE times that of chance) was trained on other numbers.
GOOD_ENOUGH, UNSURE = 0.8, 0.5
# Another scaling is clearly better where the accuracy rises by LEAST_GAIN, and by
# LEAST_DEVIATIONS standard deviations of pure chance (McNemar's test).
LEAST_GAIN, LEAST_DEVIATIONS = 0.1, 4.0
# Or where the accuracy is no lower, and the cross-entropy falls to this share.
MOST_LOSS = 0.25
# Distance of the images' statistics from those of training, in octaves of the variance
# or standard deviations of the mean: above FAR the scaling is wrong, below NEAR it may
# be right.
FAR, NEAR, STATISTICS_IMAGES = 2.0, 1.0, 64
# Mean and standard deviation of ImageNet, used by most published models of RGB images.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def look(model: keras.Model, dataset: Dataset, name: str = "Float model") -> str | None:
    """Prints a model's accuracy, and a hint where another scaling fits far better.

    Training is not affected: no random number is drawn and no weight changes. Without
    labels, or with images that have no single class, there is no accuracy; then the
    moving statistics of the first BatchNormalization tell which scaling was used in
    training.

    Args:
        model: the float model.
        dataset: the images, scaled as the flags say.
        name: what the printed line calls the model.

    Returns:
        The hint, or None.
    """
    # With several workers one of them alone cannot read the shared variables.
    if tf.distribute.has_strategy() or not dataset.sizes["train"]:
        return None
    if dataset.as_stored:  # no pixels, that could be scaled otherwise
        return None
    batches = list(dataset.calibration(IMAGES).as_numpy_iterator())
    given = dataset.config.input_scaling()
    if not dataset.labelled or dataset.holds != "classes":
        parts = [b[0] if dataset.labelled else b for b in batches]
        images = np.concatenate(parts)[:STATISTICS_IMAGES]
        return _said(_by_statistics(model, images, given, _others(dataset)))
    try:
        right, losses = _measured(model, batches)
    except TaskError:  # labels do not fit the model: training reports that
        return None
    print(
        f"{name}: {100 * right.mean():.2f} % of {right.size} training images, "
        f"with scaling={given.kind}",
        flush=True,
    )
    chance = math.log(max(model.output_shape[-1], 2))
    if right.mean() >= GOOD_ENOUGH and losses.mean() < UNSURE * chance:
        return None
    tried = [
        (*_measured(model, _rescaled(batches, given, scaling)), scaling)
        for scaling in _others(dataset)
    ]
    hint = _more_often_right(right, tried)
    if hint is None and losses.mean() >= UNSURE * chance:
        hint = _surer(right, losses, tried, chance)
    return _said(hint)


def _said(hint: str | None) -> str | None:
    if hint is not None:
        print(
            f"Hint: {hint}. The model seems to read pixels scaled so: give the flag, "
            "in a new --workdir or with --overwrite.",
            flush=True,
        )
    return hint


def _by_statistics(
    model: keras.Model,
    images: np.ndarray,
    given: InputScaling,
    others: Iterable[InputScaling],
) -> str | None:
    """Finds the scaling whose inputs match the statistics of BatchNormalization.

    Returns None where the given scaling matches, and where no other one does either:
    the statistics may have been folded into kernels.
    """
    found = _statistics_reader(model)
    if found is None:
        return None
    name, apart = found
    if apart(images) <= FAR:
        return None
    tried = {}
    for scaling in others:
        ((moved, _),) = _rescaled([(images, None)], given, scaling)
        tried[scaling] = apart(moved)
    best = min(tried, key=lambda scaling: tried[scaling])
    if tried[best] > NEAR:
        return None
    return f"with {_flags(best)} the statistics of {name!r} are those of training"


def _more_often_right(right: np.ndarray, tried: list[tuple]) -> str | None:
    """Returns a hint of the scaling that is right more often, if beyond chance."""
    best, _, scaling = max(tried, key=lambda found: found[0].mean())
    more, fewer = int(np.sum(best & ~right)), int(np.sum(right & ~best))
    deviations = (more - fewer) / max(np.sqrt(more + fewer), 1.0)
    if best.mean() - right.mean() < LEAST_GAIN or deviations < LEAST_DEVIATIONS:
        return None
    return f"with {_flags(scaling)} it is right about {100 * best.mean():.2f} %"


def _surer(
    right: np.ndarray, losses: np.ndarray, tried: list[tuple], chance: float
) -> str | None:
    """Returns a hint of a scaling as accurate and much surer (paired t test).

    Its cross-entropy must be below that of chance: a model of other classes, or of the
    same in another order, is least wrong where it cannot tell them apart.
    """
    as_good = [found for found in tried if found[0].mean() >= right.mean()]
    if not as_good:
        return None
    _, best, scaling = min(as_good, key=lambda found: found[1].mean())
    if best.mean() > MOST_LOSS * losses.mean():
        return None
    if min(map(_deviations, (losses - best, chance - best))) < LEAST_DEVIATIONS:
        return None
    return (
        f"with {_flags(scaling)} its cross-entropy is {best.mean():.3f} instead of "
        f"{losses.mean():.3f}"
    )


def _deviations(gain: np.ndarray) -> float:
    """Mean of the gains of all images [N], in standard errors."""
    return float(gain.mean() / max(gain.std() / math.sqrt(gain.size), 1e-12))


def _others(dataset: Dataset) -> Iterator[InputScaling]:
    """Yields the other input scalings that models are usually trained with."""
    given = dataset.config.input_scaling()
    spec = spec_of(dataset.config)
    for kind in ("0..255", "0..1", "-1..1"):
        if kind != given.kind:
            yield InputScaling(kind)
    pairs = [(spec.mean, spec.std)] if spec.mean and spec.std else []
    pairs += [_IMAGENET] if dataset.input_shape[2] == 3 else []
    for mean, std in pairs:
        scaling = InputScaling("mean_std", mean, std)
        if scaling != given and len(mean or ()) in (1, dataset.input_shape[2]):
            yield scaling


def _rescaled(batches: list, given: InputScaling, wanted: InputScaling) -> list:
    """Returns the same batches in another scaling; stored pixels are whole numbers."""
    (scale, offset), (other, start) = pixel_affine(given), pixel_affine(wanted)
    return [
        (np.round((images - offset) / scale) * other + start, labels)
        for images, labels in batches
    ]


def _measured(model: keras.Model, batches: list) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether each image is classified correctly [N], and its loss [N]."""
    kind = classifier_kind(model)
    if isinstance(kind, Numbers):
        raise TaskError("Numbers are neither right nor wrong.")
    loss, right, losses = make_loss(model), [], []
    for images, labels in batches:
        scores = np.asarray(model(np.float32(images), training=False))
        right.append(kind.right(scores, labels).reshape(-1))
        losses.append(np.asarray(loss.call(labels.reshape(-1, 1), scores)).reshape(-1))
    return np.concatenate(right), np.concatenate(losses)


def _has_statistics(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _statistics_reader(
    model: keras.Model,
) -> tuple[str, Callable[[np.ndarray], float]] | None:
    """Returns the first BatchNormalization's name, and a distance from its statistics.

    The distance of images is `max(|log2(var / moving var)|, |mean - moving mean| /
    sigma)` at the layer's input, each term the median over channels. Returns None where
    no BatchNormalization is called exactly once.
    """
    flat = flattened(model)
    norm = next((each for each in flat.layers if _has_statistics(each)), None)
    try:
        before = keras.Model(flat.inputs[0], norm.input) if norm else None
    except (AttributeError, ValueError):  # called more than once
        return None
    if (
        norm is None
        or before is None
        or norm.axis not in (-1, len(norm.input.shape) - 1)
    ):
        return None
    mean, variance = (
        np.asarray(v, "float64") for v in (norm.moving_mean, norm.moving_variance)
    )

    def apart(images: np.ndarray) -> float:
        values = np.asarray(before(np.float32(images), training=False), "float64")
        values = values.reshape(-1, values.shape[-1])
        ratio = (values.var(axis=0) + norm.epsilon) / (variance + norm.epsilon)
        moved = np.abs(values.mean(axis=0) - mean) / np.sqrt(variance + norm.epsilon)
        return float(max(np.median(np.abs(np.log2(ratio))), np.median(moved)))

    return norm.name, apart


def _flags(scaling: InputScaling) -> str:
    if scaling.kind != "mean_std":
        return f"--scaling={scaling.kind}"
    mean, std = (",".join(map(str, v or ())) for v in (scaling.mean, scaling.std))
    return f"--scaling=mean_std --mean={mean} --std={std}"
