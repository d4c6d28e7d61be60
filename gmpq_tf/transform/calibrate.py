"""One pass over data sets the range of every activation quantizer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import read_graph
from gmpq_tf.layer_kinds import Role
from gmpq_tf.quantizers import InputQuantizer
from gmpq_tf.quantizers.grid import code_limit
from gmpq_tf.quantizers.input_quantizer import DEFAULT_RANGE
from gmpq_tf.quantizers.line_search import SILENT
from gmpq_tf.quantizers.observing import observing
from gmpq_tf.transform.batches import ModelInputs, input_batches, is_arrays
from gmpq_tf.transform.placement import is_transparent
from gmpq_tf.transform.ranges import (
    DEFAULT_RANGE_METHOD,
    RangeMethod,
    SeenValues,
    range_method,
    squared_error,
)

CALIBRATION_IMAGES = 512
SAMPLES_PER_BATCH = 16_384
# Where more than this share of values lies midway between two codes, the step is
# enlarged by this factor, so that they no longer do.
HALVES, OFF_HALVES = 0.5, 2.0**-10
# Pixels that are rescaled inside the model all have the same fractional code, which may
# be one half; a step larger by this factor spreads them.
OFF_INPUT_STEPS = 2.0**-6


class CalibrationError(ValueError):
    """The ranges could not be set from the data given."""


class Observer:
    """Collects the extremes and a random sample of the values a quantizer sees."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.samples: list[np.ndarray] = []
        self.low, self.high = np.inf, -np.inf

    def __call__(self, values: np.ndarray) -> None:
        """Records one batch of values, any shape; up to 16,384 are sampled."""
        flat = np.asarray(values, "float32").ravel()
        # Unlike Python's min and max these keep NaN, so that it is noticed.
        self.low = float(np.minimum(self.low, flat.min()))
        self.high = float(np.maximum(self.high, flat.max()))
        picks = self.random.integers(0, flat.size, min(flat.size, SAMPLES_PER_BATCH))
        self.samples.append(flat[picks])

    @property
    def silent(self) -> bool:
        """Whether all values are below 1e-8 in magnitude, which counts as zero."""
        return max(-self.low, self.high) < SILENT

    @property
    def sample(self) -> np.ndarray:
        """The sampled values and both extremes, float32 [n]."""
        return np.concatenate([*self.samples, [self.low, self.high]]).astype("float32")


def calibrate(
    model: keras.Model,
    dataset: Any,
    batches: int | None = None,
    seed: int = 0,
    method: str | RangeMethod = DEFAULT_RANGE_METHOD,
) -> None:
    """Sets the range of every activation quantizer from data, in one pass.

    Runs the model in inference mode with quantizers off, and gives each grid the step
    of least squared error on the values seen, or that of another `method`. Model inputs
    get the range from their smallest to their largest value, whatever the method;
    power-of-two grids get the best power of two. A tensor that is zero throughout tells
    nothing about its range: it gets 6, as before calibration, and a warning names it.
    (With a tiny range a channel that is zero here could never become active.)

    Args:
        model: from `quantize_model` or `build_hypernet`; its ranges are changed.
        dataset: an array of images or, for several inputs, a dict of arrays by name or
            a list of them in the order of `model.inputs`; or a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or any iterable of batches: inputs, or (inputs,
            labels, ...). Floats as the model takes them; a few hundred images are
            enough.
        batches: how many batches to use; None: all.
        seed: seed of the random sample of values.
        method: a name in `RANGE_METHODS`, or a function of `SeenValues` that returns
            the step, such as `Percentile(99.9)`.

    Raises:
        CalibrationError: there is no image, a value is not finite, or the model has no
            quantizers.
        InputError: data that do not fit the model's inputs.
        ValueError: an unknown method; the nearest name is given.
    """
    chosen = range_method(method)
    quantizers = input_quantizers(model)
    if not quantizers:
        raise CalibrationError(
            "The model must hold quantizers. "
            f"Received: model={model.name!r}, which has none. "
            "Pass what quantize_model or build_hypernet returned."
        )
    inputs = ModelInputs(read_graph(model))
    observers = [Observer(seed + number) for number in range(len(quantizers))]
    with observing(dict(zip(quantizers, observers, strict=True))):
        for arrays in input_batches(inputs, dataset, batches):
            model(inputs.structured(arrays), training=False)
    scaled = _scaled_inputs(model)
    for quantizer, observer in zip(quantizers, observers, strict=True):
        _check_observed(quantizer, observer)
    _warn_of_silence(quantizers, observers)
    steps: dict[int, float] = {}
    for quantizer, observer in zip(quantizers, observers, strict=True):
        grids = {
            branch: best_grid(
                observer, quantizer, branch, id(quantizer) in scaled, chosen
            )
            for branch in range(len(quantizer.bits))
        }
        quantizer.set_branches(grids)
        steps[id(quantizer)] = grids[len(grids) - 1][0]
    _warn_of_lost_channels(model, steps)


def first_images(
    model: keras.Model, data: Any, images: int = CALIBRATION_IMAGES
) -> list[Any]:
    """The first images of training data, as batches for `calibrate`.

    Args:
        model: the model that will be calibrated.
        data: what `calibrate` takes, except iterators and generators.
        images: how many images; all, if the data have fewer.

    Raises:
        CalibrationError: an iterator, which reading would consume.
        InputError: data that do not fit the model's inputs.
    """
    if isinstance(data, Iterator):
        raise CalibrationError(
            "Ranges must be calibrated before training. "
            f"Received: data={type(data).__name__}, which would be used up by looking "
            "at it. Calibrate on some batches first, or pass arrays, a tf.data.Dataset "
            "or a keras.utils.PyDataset."
        )
    inputs = ModelInputs(read_graph(model))
    whole = is_arrays(data, inputs) and inputs.batch_size is None
    batches = [inputs.read(data)] if whole else input_batches(inputs, data)
    found, count = [], 0
    for arrays in batches:
        found.append(inputs.structured([a[: images - count] for a in arrays]))
        count += len(arrays[0])
        if count >= images:
            break
    return found


def input_quantizers(model: keras.Model) -> list[InputQuantizer]:
    """Every activation quantizer of a model: inside layers, and on tensors."""
    own = [getattr(layer, "input_quantizer", layer) for layer in model.layers]
    return [q for q in own if isinstance(q, InputQuantizer)]


def is_calibrated(model: keras.Model) -> bool:
    """Whether every activation quantizer of the model has been calibrated."""
    return all(np.asarray(q.calibrated) > 0 for q in input_quantizers(model))


def check_calibrated(model: keras.Model, purpose: str) -> None:
    """Refuses a model that is not calibrated; `purpose` completes "before ...".

    Raises:
        CalibrationError: a range has not been set from data; the first is named.
    """
    missing = [q for q in input_quantizers(model) if not float(q.calibrated)]
    if missing:
        raise CalibrationError(
            f"Every activation range must have been set from data before {purpose}. "
            f"Received: model={model.name!r}, whose {missing[0].path!r} has not. "
            "Call gmpq_tf.calibrate(student, dataset) first."
        )


def check_quantized(model: keras.Model, rule: str, what: str = "model") -> None:
    """Refuses hypernets and models without quantizers.

    Args:
        model: what must be a student.
        rule: the requirement, a sentence for the error.
        what: name of the argument, for the error.

    Raises:
        CalibrationError: a quantizer has several bit-widths, or there is none.
    """
    quantizers = input_quantizers(model)
    if not quantizers or any(len(q.bits) > 1 for q in quantizers):
        raise CalibrationError(
            f"{rule} Received: {what}={model.name!r}, "
            f"{'a hypernet' if quantizers else 'without quantizers'}. Pass what "
            "gmpq_tf.quantize_model(model, policy) returned."
        )


def _scaled_inputs(model: keras.Model) -> set[int]:
    """Ids of the quantizers that read model inputs scaled inside the model."""
    scaled: set[int] = set()
    found: set[int] = set()
    for call in read_graph(model).calls:
        if call.row.of_images:
            scaled.update(call.outputs)
        elif call.inputs and call.inputs[0] in scaled:
            found.add(id(getattr(call.layer, "input_quantizer", call.layer)))
            if call.role is Role.QUANTIZER or is_transparent(call):
                scaled.update(call.outputs)
    return found


def best_grid(
    observer: Observer,
    quantizer: InputQuantizer,
    branch: int,
    scaled: bool = False,
    method: RangeMethod = squared_error,
) -> tuple[float, int]:
    """Chooses the step of a branch, and the code of its zero, from observed values.

    Pixels that are scaled inside the model would all have the same distance to the next
    code, which may be one half, where integer kernels may round either way. A slightly
    larger step spreads them between the codes, so that few lie near a half.

    Args:
        observer: has seen the values.
        quantizer: the quantizer of the tensor.
        branch: index of its bit-width.
        scaled: whether the values are model inputs that were scaled inside the model.
        method: as for `calibrate`.

    Returns:
        The step, in units of the values, and the zero's code (0 unless `signed=None`).
    """
    bits, signed = quantizer.bits[branch], quantizer.signed
    limit = code_limit(bits, bool(signed))
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    if observer.silent:
        low, high = 0.0, DEFAULT_RANGE
    if signed is None:
        step = max(high - low, 1e-6) / limit
        if quantizer.power_of_two:
            step = 2.0 ** np.ceil(np.log2(step))
        elif scaled:
            step *= 1 + OFF_INPUT_STEPS
        elif _share_of_halves(observer.sample, step) > HALVES:
            step *= 1 + OFF_HALVES
        return step, round(-low / step)
    largest = max(high, -low if signed else 0.0, 1e-6)
    seen = SeenValues(
        observer.sample,
        largest,
        limit,
        quantizer.power_of_two,
        lambda steps: quantizer.fit(observer.sample, branch, list(steps)),
    )
    return seen.step_of(largest) if observer.silent else method(seen), 0


def _share_of_halves(values: np.ndarray, step: float) -> float:
    """Share of values [n] midway between two codes, where kernels round differently.

    For pixels scaled to -1..1 it is 1: with 255 steps from -1 to 1 zero lies in the
    middle of a step, and so all pixels do.
    """
    codes = values / np.float32(step) + 0.5
    return float(np.mean(np.abs(codes - np.round(codes)) < 1e-3))


def _check_observed(quantizer: InputQuantizer, observer: Observer) -> None:
    if not observer.samples:
        raise CalibrationError(
            "Calibration needs at least one batch that reaches every layer. "
            f"Received: no values at {quantizer.path or quantizer.name!r}. "
            "Pass a data set that is not empty."
        )
    if not np.isfinite([observer.low, observer.high]).all():
        raise CalibrationError(
            "Activations must be finite. "
            f"Received: values from {observer.low} to {observer.high} at "
            f"{quantizer.path or quantizer.name!r}. Check the images and the model's "
            "weights for NaN and Inf."
        )


def _warn_of_lost_channels(model: keras.Model, steps: Mapping[int, float]) -> None:
    """Names layers that normalize model inputs which their common grid has lost.

    Columns of a table may be of very different sizes. A channel whose standard
    deviation is below a step keeps less than its coarsest outline.

    Args:
        model: calibrated.
        steps: id of a quantizer -> its step.
    """
    graph = read_graph(model)
    known = dict.fromkeys(graph.inputs, 0.0)  # tensor -> step of its grid
    for call in graph.calls:
        step = known.get(call.inputs[0]) if call.inputs else None
        if step is None:
            continue
        if call.role is Role.QUANTIZER or is_transparent(call):
            own = steps.get(id(call.layer), step)
            known.update(dict.fromkeys(call.outputs, own))
        spread = getattr(call.layer, "variance", None)
        spread = getattr(call.layer, "moving_variance", spread)
        deviations: np.ndarray = np.sqrt(np.ravel(0.0 if spread is None else spread))
        lost = np.flatnonzero((deviations > 0) & (deviations < step))
        if lost.size:
            warnings.warn(
                "Channels that a model normalizes must vary by more than a step of the "
                f"8-bit grid which all its inputs share. Received: {lost.size} of "
                f"{deviations.size} channels of {call.name!r}, the first channel "
                f"{lost[0]}, whose deviation is below a step of {step:.3g}. Normalize "
                "the data before they come to the model, and leave that layer out.",
                stacklevel=3,
            )


def _warn_of_silence(
    quantizers: list[InputQuantizer], observers: list[Observer]
) -> None:
    silent = [
        quantizer.path or quantizer.name
        for quantizer, observer in zip(quantizers, observers, strict=True)
        if observer.silent
    ]
    if silent:
        warnings.warn(
            f"These tensors are zero in all calibration data: {', '.join(silent)}. "
            f"Their ranges are set to {DEFAULT_RANGE:g}. Calibrate on more images, or "
            "look for a dead layer before them.",
            stacklevel=3,
        )
