"""The quantizers of a student, with the interface of TFMOT's quantizers.

TFMOT's own quantizers learn the smallest and the largest value, round the zero point
and leave the rest to the converter: below 8 bits the result is not the grid that was
trained. The quantizers here compute the same as `gmpq_tf.quantizers`, on variables of a
tf_keras layer. They import neither TFMOT nor tf_keras; `libraries` registers them with
both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tfmot.fitting import least_error_step, power_of_two_above
from gmpq_tf.policy import check_bits
from gmpq_tf.quantizers import INPUT_QUANTIZERS, KERNEL_QUANTIZERS
from gmpq_tf.quantizers.grid import (
    code_limit,
    lowest_code,
)
from gmpq_tf.quantizers.input_method import InputMethod
from gmpq_tf.quantizers.input_quantizer import (
    DEFAULT_INPUT_QUANTIZER,
    DEFAULT_RANGE,
    input_method,
)
from gmpq_tf.quantizers.kernel_method import KernelMethod
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.quantizers.line_search import (
    ACTIVATION_FRACTIONS,
    KERNEL_FRACTIONS,
    SILENT,
)
from gmpq_tf.quantizers.lsq import scale_gradient
from gmpq_tf.spelling import lookup

SAMPLE = 65_536  # number of values of the first batch that a range is fitted to

Variables = Mapping[str, Any]


def _check_row(registry: Mapping[str, Any], kind: Any, method: str) -> None:
    """Refuses registered functions, and rows that draw codes.

    tf_keras models support neither.
    """
    row = lookup(registry, method, "quantizer")
    if not isinstance(row, kind) or row.stochastic:
        names = [
            name
            for name, each in registry.items()
            if isinstance(each, kind) and not each.stochastic
        ]
        raise ExportError(
            "tf_keras computes with the quantizers of gmpq_tf alone. "
            f"Received: method={method!r}. Use one of {', '.join(names)}."
        )


class InputFakeQuantizer:
    """Quantizes activations as `gmpq_tf.quantizers.InputQuantizer` does.

    Args:
        bits: 2 to 8.
        signed: True or False; None: the zero has the code `zero_code`.
        method: a name in `INPUT_QUANTIZERS`.
        power_of_two: round the step to a power of two.
        learn_range: whether training changes the range.
        first_batch: whether the first training batch sets a range that was never
            calibrated; until then each batch is put on a grid fitted to itself.

    Raises:
        ValueError: bits or a method that do not exist.
    """

    def __init__(
        self,
        bits: int,
        signed: bool | None = None,
        method: str = DEFAULT_INPUT_QUANTIZER,
        power_of_two: bool = False,
        learn_range: bool = True,
        first_batch: bool = True,
    ) -> None:
        _check_row(INPUT_QUANTIZERS, InputMethod, method)
        self.bits, self.signed, self.method = check_bits("bits", bits), signed, method
        self.power_of_two, self.learn_range = power_of_two, learn_range
        self.first_batch = first_batch
        self.variables: Variables = {}
        self._owner: Any = None

    def build(self, tensor_shape: Any, name: str, layer: Any) -> Variables:
        """Creates the range in a tf_keras layer, with the student's variable names."""
        if self._owner is layer:  # loading a .keras file builds a QuantizeLayer twice
            return self.variables
        self._owner, add = layer, _adder(layer, name)
        self.variables = {
            "log2_range": add("log2_range", (1,), math.log2(6.0), self.learn_range),
            "zero_code": add("zero_code", (1,), 0.0),
            "calibrated": add("calibrated", (), 0.0),
        }
        return self.variables

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Quantizes `inputs`, any shape; `weights` is the result of `build`."""
        log2, zeros = self._range(inputs, training, weights)
        features = math.prod(d for d in inputs.shape[1:] if d is not None)
        limit = code_limit(self.bits, bool(self.signed))
        log2 = scale_gradient(log2, 1 / math.sqrt(limit * max(features, 1)))
        quantize = input_method(self.method).mixture(
            (self.bits,), self.signed, self.power_of_two, self.learn_range
        )
        return quantize(inputs, tf.exp(log2 * math.log(2.0)), zeros, tf.ones([1]))

    def _range(
        self, inputs: tf.Tensor, training: bool, weights: Variables
    ) -> tuple[tf.Tensor, tf.Tensor]:
        kept = [tf.convert_to_tensor(weights[k]) for k in ("log2_range", "zero_code")]
        if not self.first_batch:
            return kept[0], kept[1]

        def fitted() -> list[tf.Tensor]:
            found = self._fit(tf.stop_gradient(inputs))
            if training:
                weights["log2_range"].assign(found[0])
                weights["zero_code"].assign(found[1])
                weights["calibrated"].assign(1.0)
            return found

        found = tf.cond(weights["calibrated"] > 0, lambda: kept, fitted)
        return found[0], found[1]

    def _fit(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        """Log2 of the range and code of the zero, [1] each, as in `calibrate`."""
        low = tf.minimum(tf.reduce_min(inputs), 0.0)
        high = tf.maximum(tf.reduce_max(inputs), 0.0)
        limit = float(code_limit(self.bits, bool(self.signed)))
        lowest = float(lowest_code(self.bits, bool(self.signed)))
        silent = tf.maximum(-low, high) < SILENT
        high = tf.where(silent, DEFAULT_RANGE, high)
        if self.signed is None:
            step = tf.maximum(high - low, 1e-6) / limit
            if self.power_of_two:
                step = power_of_two_above(step)
            zero = tf.round(-low / step)
            return [tf.math.log(step[None] * limit) / math.log(2.0), zero[None]]
        span = tf.maximum(high, -low) if self.signed else high
        step = least_error_step(
            tf.reshape(inputs, [-1, 1])[:SAMPLE],
            tf.maximum(span, 1e-6)[None] / limit,
            lambda x, s: tf.round(tf.clip_by_value(x / s, lowest, limit)) * s,
            ACTIVATION_FRACTIONS,
            self.power_of_two,
        )
        step = tf.where(silent, DEFAULT_RANGE / limit, step)
        return [tf.math.log(step * limit) / math.log(2.0), tf.zeros([1])]

    def get_config(self) -> dict[str, Any]:
        names = "bits signed method power_of_two learn_range first_batch".split()
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> InputFakeQuantizer:
        return cls(**config)


class KernelFakeQuantizer:
    """Quantizes kernels as `gmpq_tf.quantizers.KernelQuantizer` does.

    Args:
        bits: 2 to 8.
        method: a name in `KERNEL_QUANTIZERS`.
        shared_axes: axes of the kernel that share one step; None: those of the kind of
            layer, which `PolicyQuantizeConfig` fills in.
        first_batch: as for `InputFakeQuantizer`, for learned steps.

    Raises:
        ValueError: bits or a method that do not exist.
    """

    def __init__(
        self,
        bits: int,
        method: str = DEFAULT_KERNEL_QUANTIZER,
        shared_axes: Sequence[int] | None = None,
        first_batch: bool = True,
    ) -> None:
        _check_row(KERNEL_QUANTIZERS, KernelMethod, method)
        self.bits, self.method = check_bits("bits", bits), method
        self._row = kernel_method(method)
        self._row.check(method, (self.bits,))
        self.shared_axes = None if shared_axes is None else tuple(shared_axes)
        self.first_batch = first_batch
        self.variables: Variables = {}

    @property
    def learned(self) -> bool:
        """Whether the steps are variables (else they follow the kernel)."""
        return self._row.learned

    def build(self, tensor_shape: Any, name: str, layer: Any) -> Variables:
        """Creates the steps in a tf_keras layer, with the student's variable names."""
        assert self.shared_axes is not None
        if self.learned:
            add, sizes = _adder(layer, name), enumerate(tuple(tensor_shape))
            shape = [1 if axis in self.shared_axes else size for axis, size in sizes]
            self.variables = {
                "log2_step": add("log2_step", (1, *shape), -4.0, True),
                "calibrated": add("calibrated", (), 0.0),
            }
        return self.variables

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: Variables, **kwargs: Any
    ) -> tf.Tensor:
        """Quantizes a kernel, any shape; `weights` is the result of `build`."""
        kernel = tf.convert_to_tensor(inputs)
        steps = self._steps(kernel, training, weights)[None]
        return self._row.mixture(
            kernel, steps, (self.bits,), tf.ones([1]), self._axes()
        )

    def _axes(self) -> tuple[int, ...]:
        assert self.shared_axes is not None
        return self.shared_axes

    def _steps(
        self, kernel: tf.Tensor, training: bool, weights: Variables
    ) -> tf.Tensor:
        """Steps of a shape that broadcasts against the kernel."""
        if not self.learned:
            step = self._row.following_step(kernel, self.bits, self._axes())
            return tf.stop_gradient(step)
        log2 = self._log2_step(kernel, training, weights)[0]
        group = math.prod(kernel.shape) / math.prod(log2.shape)
        limit = self._row.largest_code(self.bits)
        log2 = scale_gradient(log2, 1 / math.sqrt(group * limit))
        return tf.exp(log2 * math.log(2.0))

    def _log2_step(
        self, kernel: tf.Tensor, training: bool, weights: Variables
    ) -> tf.Tensor:
        kept = tf.convert_to_tensor(weights["log2_step"])
        if not self.first_batch:
            return kept

        def fitted() -> tf.Tensor:
            found = self._fit(tf.stop_gradient(kernel), kept.shape)
            if training:
                weights["log2_step"].assign(found)
                weights["calibrated"].assign(1.0)
            return found

        return tf.cond(weights["calibrated"] > 0, lambda: kept, fitted)

    def _fit(self, kernel: tf.Tensor, shape: Any) -> tf.Tensor:
        """Log2 of the steps of least squared error, of a given shape."""
        axes, limit = self._axes(), self._row.largest_code(self.bits)
        largest = tf.reduce_max(tf.abs(kernel), axis=axes, keepdims=True)
        step = least_error_step(
            kernel,
            tf.maximum(largest, 1e-6) / limit,
            lambda w, s: self._row.values(w, s, self.bits, axes),
            KERNEL_FRACTIONS,
            axes=axes,
        )
        return tf.reshape(tf.math.log(step) / math.log(2.0), shape)

    def get_config(self) -> dict[str, Any]:
        axes = None if self.shared_axes is None else list(self.shared_axes)
        return {
            "bits": self.bits,
            "method": self.method,
            "shared_axes": axes,
            "first_batch": self.first_batch,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> KernelFakeQuantizer:
        return cls(**config)


def _adder(layer: Any, name: str) -> Callable[..., Any]:
    def add(suffix: str, shape: tuple, initial: float, trainable: bool = False) -> Any:
        return layer.add_weight(
            name=f"{name}_{suffix}",
            shape=shape,
            dtype="float32",
            initializer=tf.constant_initializer(initial),
            trainable=trainable,
        )

    return add
