"""The Keras layer that owns an activation quantizer's ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.policy import check_bits
from gmpq_tf.quantizers.draws import add_draws, next_seed
from gmpq_tf.quantizers.expected_grid import check_one_rounding
from gmpq_tf.quantizers.grid import bounded_power, code_limit
from gmpq_tf.quantizers.input_method import FunctionInput, InputMethod
from gmpq_tf.quantizers.lsq import lsq
from gmpq_tf.quantizers.mixture import steps_and_codes
from gmpq_tf.quantizers.observing import observers_now
from gmpq_tf.quantizers.pact import pact
from gmpq_tf.quantizers.rq import rq
from gmpq_tf.spelling import lookup

# Rows, or functions `(x, input_range, bits, signed)` that return `code * step`, where
# the step is `input_range` over the largest code.
INPUT_QUANTIZERS: dict[str, InputMethod | Callable] = {
    "pact": pact,
    "lsq": lsq,
    "rq": rq,
}
DEFAULT_INPUT_QUANTIZER = "lsq"
DEFAULT_RANGE = 6.0


def input_method(name: str) -> InputMethod:
    """The row of `INPUT_QUANTIZERS` with this name.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    found = lookup(INPUT_QUANTIZERS, name, "input quantizer")
    return found if isinstance(found, InputMethod) else FunctionInput(found)


@keras.saving.register_keras_serializable("gmpq_tf")
class InputQuantizer(keras.layers.Layer):
    """Quantizes activations to one bit-width, or to a weighted sum of several.

    One branch: `q_b(x)`. Several: `sum_j pi_j q_{b_j}(x)` (eq. 5), each with its own
    range. Ranges are set by `gmpq.calibrate`; until then they are 6, as in ReLU6.

    Args:
        bits: a bit-width, or the candidate bit-widths, each 2 to 8.
        signed: True or False; None (for model inputs, whose sign the graph does not
            tell): calibration places the zero, and the range is `max - min` and fixed.
        method: a name in `INPUT_QUANTIZERS`. The values and gradients of a registered
            function are used unchanged.
        power_of_two: keep the step a power of two and fixed, so that this grid nests
            in that of a tensor already quantized. (A learned range would settle at the
            border between two powers and flip between them.)
        learn_range: whether training changes the range.
        calibrate_first: whether a layer refuses to train before calibration.
        one_rounding: round once, on the mean of the branches' grids, instead of once
            per branch; see `quantizers.expected_grid`.

    Raises:
        ValueError: an unknown method, or a function that cannot be called.
    """

    def __init__(
        self,
        bits: int | Sequence[int],
        signed: bool | None = False,
        method: str = DEFAULT_INPUT_QUANTIZER,
        power_of_two: bool = False,
        learn_range: bool = True,
        calibrate_first: bool = False,
        one_rounding: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True  # a mask of time steps reaches the next layer
        candidates = bits if isinstance(bits, (list, tuple)) else (bits,)
        self.bits = tuple(check_bits("bits", b) for b in candidates)
        self.signed = signed
        self.method = method
        self.row = input_method(method)
        self.one_rounding = check_one_rounding(self.row, method, one_rounding)
        self.power_of_two = bool(power_of_two)
        self.learn_range = bool(learn_range) and not power_of_two and signed is not None
        self.calibrate_first = bool(calibrate_first)
        self._seen_calibrated = False
        # Whether values are rounded to the nearest code, as integer kernels do it.
        self.on_grid = self.row.check(method, self.bits, bool(signed))

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates one range and zero code per branch, and the flag `calibrated`."""
        self.log2_range = self.add_weight(
            name="log2_range",
            shape=(len(self.bits),),
            initializer=keras.initializers.Constant(math.log2(DEFAULT_RANGE)),
            trainable=self.learn_range,
            autocast=False,
            dtype="float32",
        )
        self.zero_code = self.add_weight(
            name="zero_code",
            shape=(len(self.bits),),
            initializer="zeros",
            trainable=False,
            autocast=False,
            dtype="float32",
        )
        self.calibrated = self.add_weight(
            name="calibrated",
            shape=(),
            initializer="zeros",
            trainable=False,
            autocast=False,
            dtype="float32",
        )
        self.draws = add_draws(self) if self.row.stochastic else None

    def call(
        self,
        inputs: tf.Tensor,
        probabilities: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Quantizes `inputs`, any shape; `probabilities` [branches] weigh the branches.

        Inside `observing` the values are shown to the observer and passed on unchanged.
        """
        observers = observers_now()
        if observers is not None:
            if self in observers:
                observers[self](np.asarray(inputs))
            return inputs
        return self.compute(inputs, self.parameters(inputs, probabilities, training))

    def check_calibrated(self) -> None:
        """Refuses to train an uncalibrated range, if `calibrate_first` is set.

        The variable is read when a training step is traced (in eager mode in each step,
        until it is set).

        Raises:
            ValueError: the range has not been set from data.
        """
        if not self.calibrate_first or self._seen_calibrated:
            return
        with tf.init_scope():
            self._seen_calibrated = bool(np.asarray(self.calibrated) > 0)
        if not self._seen_calibrated:
            raise ValueError(
                "Every activation range must have been set from data before training. "
                f"Received: {self.path or self.name!r}, which has not. "
                "Call gmpq_tf.calibrate(model, dataset) first."
            )

    def parameters(
        self,
        inputs: tf.Tensor,
        probabilities: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> list[tf.Tensor]:
        """What `compute` needs besides the inputs: ranges, zero codes, probabilities.

        Each is [branches], of the type of the inputs. In training of a row that draws
        codes a seed [2] follows.
        """
        dtype = inputs.dtype
        features = math.prod(d for d in inputs.shape[1:] if d is not None)
        log2 = tf.convert_to_tensor(self.log2_range)
        scales = self._gradient_scales(features)
        ranges = tf.cast(bounded_power(log2, scales), dtype)
        zeros = tf.cast(tf.convert_to_tensor(self.zero_code), dtype)
        if probabilities is None:
            probabilities = tf.ones([len(self.bits)], dtype)
        found = [ranges, zeros, tf.cast(probabilities, dtype)]
        if training and self.draws is not None:
            found.append(next_seed(self.draws))
        return found

    def compute(self, inputs: tf.Tensor, parameters: Sequence[tf.Tensor]) -> tf.Tensor:
        """Quantizes `inputs`, any shape, with given `parameters`; reads no variable.

        So it can be evaluated again in the backward pass (`keeping_arguments`).
        """
        once = self.one_rounding and len(self.bits) > 1
        make: Callable = self.row.one_rounding if once else self.row.mixture
        if len(parameters) > 3:
            make = self.row.drawn
        quantize = make(self.bits, self.signed, self.power_of_two, self.learn_range)
        return quantize(inputs, *parameters)

    def fit(self, values: np.ndarray, branch: int, steps: Sequence[float]) -> float:
        """The candidate step with the least squared error on values [n] for a branch.

        Args:
            values: float32 [n].
            branch: index of the bit-width.
            steps: candidates, in the units of the values.
        """
        return self.row.fit(values, steps, self.bits[branch], bool(self.signed))

    def _gradient_scales(self, features: int) -> np.ndarray:
        """LSQ's gradient scale `1 / sqrt(features * code_limit)`, [branches]."""
        limits = [code_limit(b, bool(self.signed)) for b in self.bits]
        return 1.0 / np.sqrt(np.array(limits, "float32") * max(features, 1))

    def step_tensor(self) -> tf.Tensor:
        """Step of the only branch, a scalar."""
        return self._step_and_codes(0)[0]

    def step(self, branch: int = 0) -> float:
        """Step of a branch, exactly as `call` uses it in float32."""
        return float(self._step_and_codes(branch)[0])

    def codes(self, branch: int = 0) -> tuple[int, int]:
        """Smallest and largest code of a branch; code c is the value `c * step`.

        With `signed=None` codes are counted from the zero code, so 0 has the code 0.
        """
        _, low, high = self._step_and_codes(branch)
        return int(low), int(high)

    def _step_and_codes(self, branch: int) -> tuple:
        ranges = bounded_power(tf.convert_to_tensor(self.log2_range))
        zeros = tf.convert_to_tensor(self.zero_code)
        grids = steps_and_codes(
            ranges, zeros, self.bits, self.signed, self.power_of_two
        )
        return tuple(values[branch] for values in grids)

    def set_branch(self, branch: int, step: float, zero_code: int = 0) -> None:
        """Sets a branch's step and, for `signed=None`, the code of its zero.

        Raises:
            ValueError: a step that is not positive and finite.
        """
        self.set_branches({branch: (step, zero_code)})

    def set_branches(self, grids: Mapping[int, tuple[float, int]]) -> None:
        """Sets several branches at once, which takes as long as one.

        Args:
            grids: index of a branch -> its step and the code of its zero.

        Raises:
            ValueError: a step that is not positive and finite.
        """
        log2, zeros = np.array(self.log2_range), np.array(self.zero_code)
        for branch, (step, zero_code) in grids.items():
            if not 0 < step < math.inf:
                raise ValueError(
                    "A step must be positive and finite. "
                    f"Received: step={step!r} for {self.path or self.name!r}. "
                    "Calibrate on data that are not all zero."
                )
            limit = code_limit(self.bits[branch], bool(self.signed))
            log2[branch], zeros[branch] = math.log2(step * limit), zero_code
        self.log2_range.assign(log2)
        self.zero_code.assign(zeros)
        self.calibrated.assign(1.0)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "bits": list(self.bits),
            "signed": self.signed,
            "method": self.method,
            "power_of_two": self.power_of_two,
            "learn_range": self.learn_range,
            "calibrate_first": self.calibrate_first,
            **({"one_rounding": True} if self.one_rounding else {}),
        }
