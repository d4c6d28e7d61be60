"""Learns which weights to round up or down, from images without labels (AdaRound)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from gmpq_tf.graph import infer
from gmpq_tf.post_training.walk import Pair, Walk
from gmpq_tf.quantizers.kernel_method import GridKernel
from gmpq_tf.transform.calibrate import CalibrationError
from gmpq_tf.transform.units import Unit

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # gamma and zeta of the paper
FIRST_POWER, LAST_POWER = 20.0, 2.0  # beta of the regularizer
WARM_UP = 0.2  # share of the steps without regularizer
LEARNING_RATE = 1e-2
PENALTY = 1.0  # lambda, relative to the error of nearest rounding


@dataclass(frozen=True)
class Rounding:
    """The result of learning one layer.

    Args:
        nearest_error: mean squared error of the unit's output with nearest codes.
        error: the same with the final codes; never larger.
        changed: share of the weights whose code is not the nearest.
    """

    nearest_error: float
    error: float
    changed: float


def learn_rounding(
    student: keras.Model,
    model: keras.Model,
    dataset: Any,
    batches: int | None = None,
    steps: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
    most_bits: int = 8,
) -> dict[str, Rounding]:
    """Rounds every kernel so that its unit's output is close to the float network's.

    `min_V ||f(x; W) - f(x_q; s clip(floor(W/s) + h(V), -n, n))||^2 +
    lambda sum_i (1 - |2 h(V_i) - 1|^beta)` (eq. 25), with
    `h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)` and beta falling from 20 to 2. This is
    solved for each unit (layer, BatchNormalization and ReLU) in the order of the graph;
    `x_q` is the input of the student's unit, with earlier units rounded already. If
    nearest rounding has the smaller error on these images, it is kept. Kernels end up
    as codes times steps; steps, biases and ranges do not change.

    Unlike the paper the error is relative to that of nearest rounding, and the penalty
    is a mean over the weights, so that one lambda fits all layers.

    Args:
        student: from `quantize_model` with kernel quantizer "lsq", calibrated; changed
            in place.
        model: the float model it was made of; not changed.
        dataset: images, as `calibrate` takes them; inputs and outputs of one unit are
            kept in memory for all of them.
        batches: how many batches to use; None: all.
        steps: steps of Adam for each unit, 1 or more.
        batch_size: images in a step, 1 or more.
        seed: seed for drawing the images of each step.
        progress: whether a bar is shown on a terminal.
        most_bits: kernels with more bits keep nearest rounding, which costs them
            little; 2 to 8.

    Returns:
        Layer name -> its result. Layers used more than once are left out, with a
        warning that names them, and so are those with more than `most_bits`.

    Raises:
        CalibrationError: the student is not calibrated or of another model, or has
            kernels whose steps are not learned or whose codes are not whole numbers.
        InputError: there are no images, or they do not fit the model.
        ValueError: steps or the batch size are below 1.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training
    Quantization", ICML 2020.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more. Received: {name}={value!r}.")
    check_grids(student)
    walk = Walk(student, model, dataset, batches)
    pairs = [pair for pair in walk.pairs if _bits_of(pair) <= most_bits]
    found: dict[str, Rounding] = {}
    random = np.random.default_rng(seed)
    disable = None if progress else True  # None: shown on terminals only
    with tqdm(total=len(pairs) * steps, unit="step", disable=disable) as bar:
        for pair in pairs:
            bar.set_description(pair.name)
            unit = RoundedUnit(pair.unit)
            x = [
                np.asarray(unit.layer.quantize_input(tf.constant(batch)))
                for batch in walk.student.operands(pair.student[pair.name])
            ]
            last = pair.reference[pair.unit.calls[-1].name]
            targets = np.concatenate([*walk.reference.outputs(last)])
            found[pair.name] = unit.learn(
                np.concatenate(x), targets, steps, batch_size, random, bar
            )
    if walk.shared:
        warnings.warn(
            "These layers are used more than once and keep nearest rounding: "
            f"{', '.join(walk.shared)}.",
            stacklevel=2,
        )
    return found


def _bits_of(pair: Pair) -> int:
    return int(pair.unit.call.layer.kernel_quantizer.bits[0])


def check_grids(student: keras.Model) -> None:
    """Refuses kernels whose rounding cannot be learned.

    Raises:
        CalibrationError: there is such a kernel; its layer is named.
    """
    layer = _refused(student)
    if layer is not None:
        raise CalibrationError(
            "Rounding is learned for kernels with steps of their own and codes "
            "that are all the whole numbers. "
            f"Received: kernel_quantizer={layer.kernel_quantizer.method!r} at "
            f"{layer.name!r}. Quantize the model with kernel_quantizer='lsq'."
        )


def can_learn_rounding(student: keras.Model) -> bool:
    """Whether `learn_rounding` and `learn_blocks` support a student's kernels."""
    return _refused(student) is None


def _refused(student: keras.Model) -> Any | None:
    """The first layer whose codes are not all whole numbers times learned steps."""
    for layer in student.layers:
        quantizer = getattr(layer, "kernel_quantizer", None)
        if quantizer is None:
            continue
        row = quantizer.row
        whole = isinstance(row, GridKernel) and (
            type(row).nearest is GridKernel.nearest
        )
        if not (whole and quantizer.learned):
            return layer
    return None


def soft_rounding(v: Any) -> Any:
    """`h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)` (eq. 23), any shape."""
    spread = STRETCH_HIGH - STRETCH_LOW
    return tf.clip_by_value(tf.sigmoid(v) * spread + STRETCH_LOW, 0.0, 1.0)


def soft_start(rest: np.ndarray) -> np.ndarray:
    """The V for which `h(V)` is a given fraction from 0 to 1, any shape."""
    share = (rest - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    return np.log(share / (1 - share))


def power_at(step: int, steps: int) -> float:
    """Power beta of the regularizer: 20 in the warm-up, then falling linearly to 2."""
    start = WARM_UP * steps
    part = max(0.0, step - start) / max(steps - start, 1)
    return FIRST_POWER + (LAST_POWER - FIRST_POWER) * part


class RoundedUnit:
    """A unit of the student while the rounding of its kernel is learned.

    Args:
        unit: unit of the student.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit, self.layer = unit, unit.call.layer
        quantizer = self.layer.kernel_quantizer
        kernel = np.asarray(self.layer.kernel, "float32")
        self.limit = quantizer.largest_code()
        self.steps = np.asarray(quantizer.step(kernel), "float32")
        scaled = kernel * (1 / self.steps)
        self.below = np.floor(scaled)
        self.rest = np.clip(scaled - self.below, 0, 1)
        self.nearest = quantizer.codes(kernel).astype("float32")

    def output(self, x: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        """The unit's output, [B, ...], for a quantized input [B, ...] and codes."""
        product = self.layer.multiply(x, codes * self.steps)
        result = self.layer.finish(product, None)
        for call in self.unit.calls[1:]:
            result = infer(call, {call.inputs[0]: result})
        return result

    def codes(self, up: Any) -> tf.Tensor:
        """Codes rounded down plus the share `up` of a step, of the kernel's shape."""
        return tf.clip_by_value(self.below + up, -self.limit, self.limit)

    def error(
        self, x: np.ndarray, targets: np.ndarray, codes: tf.Tensor, size: int
    ) -> float:
        """Mean squared error over all images, `x` and `targets` [N, ...]."""
        total = 0.0
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            output = np.asarray(self.output(tf.constant(x[part]), codes), "float64")
            total += float(np.square(output - targets[part]).sum())
        return total / targets.size

    def learn(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        steps: int,
        batch_size: int,
        random: np.random.Generator,
        bar: Any,
    ) -> Rounding:
        """Learns the rounding, and sets the kernel to the better codes.

        Args:
            x: quantized input, [N, ...].
            targets: output of the float network, [N, ...].
            steps: steps of Adam.
            batch_size: images in a step.
            random: draws the images.
            bar: progress bar, updated after each step.
        """
        before = self.error(x, targets, self.nearest, batch_size)
        codes, after = self.nearest, before
        if before > 0:
            learned = self._learned(x, targets, before, steps, batch_size, random, bar)
            error = self.error(x, targets, learned, batch_size)
            if error < before:
                codes, after = learned, error
        self.layer.kernel.assign(codes * self.steps)
        return Rounding(before, after, float(np.mean(codes != self.nearest)))

    def _learned(
        self,
        x: np.ndarray,
        targets: np.ndarray,
        scale: float,
        steps: int,
        batch_size: int,
        random: np.random.Generator,
        bar: Any,
    ) -> np.ndarray:
        v = keras.Variable(soft_start(self.rest), dtype="float32")
        adam = keras.optimizers.Adam(LEARNING_RATE)
        adam.build([v])

        @tf.function(autograph=False)
        def train(xs: tf.Tensor, ys: tf.Tensor, power: tf.Tensor, penalty: Any) -> None:
            with tf.GradientTape() as tape:
                up = soft_rounding(tf.convert_to_tensor(v))
                error = tf.reduce_mean(
                    tf.square(self.output(xs, self.codes(up)) - ys)
                ) / tf.constant(scale, tf.float32)
                undecided = 1 - tf.pow(tf.abs(2 * up - 1), power)
                loss = error + penalty * tf.reduce_mean(undecided)
            adam.apply([tape.gradient(loss, v.value)], [v])

        for step, chosen in enumerate(draws(random, len(x), batch_size, steps)):
            penalty = PENALTY if step >= WARM_UP * steps else 0.0
            train(
                tf.constant(x[chosen]),
                tf.constant(targets[chosen]),
                tf.constant(power_at(step, steps), tf.float32),
                tf.constant(penalty, tf.float32),
            )
            bar.update(1)
        up = np.asarray(v) >= 0
        return np.asarray(self.codes(up.astype("float32")))


def draws(
    random: np.random.Generator, images: int, size: int, steps: int
) -> Iterator[np.ndarray]:
    """Yields indices of the images of each step, [size]; all images equally often."""
    order = random.permutation(images)
    size = min(size, images)
    for _ in range(steps):
        if len(order) < size:
            order = np.concatenate([order, random.permutation(images)])
        yield order[:size]
        order = order[size:]
