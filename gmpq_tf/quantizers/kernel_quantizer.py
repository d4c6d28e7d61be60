"""Keras shell that owns a kernel quantizer's steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.policy import check_bits
from gmpq_tf.quantizers import own
from gmpq_tf.quantizers.grid import bounded_power, finite_step, symmetric_limit
from gmpq_tf.quantizers.line_search import (
    KERNEL_FRACTIONS,
    least_error_step,
    least_error_steps,
)
from gmpq_tf.quantizers.lsq import lsq_kernel, scale_gradient
from gmpq_tf.quantizers.max_abs import max_abs, max_abs_step
from gmpq_tf.quantizers.mixture import weighted_sum
from gmpq_tf.spelling import lookup

# Functions `(kernel, step, bits)`, whose step is then learned, or `(kernel, bits,
# axes)`, which find one step for the weights along `axes`; both return `code * step`.
KERNEL_QUANTIZERS: dict[str, Callable] = {"max_abs": max_abs, "lsq": lsq_kernel}
FUSED = (max_abs, lsq_kernel)  # those that `weighted_sum` computes in one pass
DEFAULT_KERNEL_QUANTIZER = "lsq"
DEFAULT_LOG2_STEP = -4.0


@keras.saving.register_keras_serializable("gmpq_tf")
class KernelQuantizer(keras.layers.Layer):
    """Quantizes a kernel to one bit-width, or to a weighted sum of several.

    One branch: `q_b(W)`. Several: `sum_i pi_i q_{b_i}(W)`, the compositional kernel of
    eq. 5. Grids are symmetric: codes `-(2^(b-1)-1) .. 2^(b-1)-1`.

    Args:
        bits: a bit-width, or the candidate bit-widths, each 2 to 8.
        method: a name in `KERNEL_QUANTIZERS`; "lsq" learns the steps (in the
            logarithm), "max_abs" follows the largest weight. Another function than
            these two is called as it is, forward and backward.
        shared_axes: kernel axes that share one step, the first ones: all of them for
            one step a tensor, all but the output channels for one step a channel.

    Raises:
        ValueError: an unknown method, a function that cannot be called, or other axes.
    """

    def __init__(
        self,
        bits: int | Sequence[int],
        method: str = DEFAULT_KERNEL_QUANTIZER,
        shared_axes: Sequence[int] = (0, 1, 2),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        candidates = bits if isinstance(bits, (list, tuple)) else (bits,)
        self.bits = tuple(check_bits("bits", b) for b in candidates)
        self.method = method
        self._function = lookup(KERNEL_QUANTIZERS, method, "kernel quantizer")
        self.learned = own.takes_step(self._function)
        self.shared_axes = tuple(shared_axes)
        if self.shared_axes != tuple(range(len(self.shared_axes))):
            raise ValueError(
                "shared_axes must be the first axes of the kernel, in order. "
                f"Received: shared_axes={shared_axes!r}. Pass such as (0, 1, 2)."
            )
        self.enabled = True  # calibration looks at the float network
        self.fused = self._function in FUSED
        # Whether values are whole multiples of a step, as integer kernels need.
        self.on_grid = self.fused or own.check_kernel_quantizer(
            self._function, method, self.bits
        )

    def build(self, kernel_shape: Sequence[int]) -> None:
        """Create the learned steps, one a branch and channel."""
        shape = [
            1 if axis in self.shared_axes else size
            for axis, size in enumerate(kernel_shape)
        ]
        self._group_size = math.prod(kernel_shape) / math.prod(shape)
        if self.learned:
            self.log2_step = self.add_weight(
                name="log2_step",
                shape=(len(self.bits), *shape),
                initializer=keras.initializers.Constant(DEFAULT_LOG2_STEP),
                autocast=False,
                dtype="float32",
            )

    def call(
        self, kernel: tf.Tensor, probabilities: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Quantize `kernel`; `probabilities` [branches] weigh the branches."""
        if not self.enabled:
            return kernel
        kernel = tf.convert_to_tensor(kernel)
        return self.compute(kernel, self.parameters(kernel, probabilities))

    def parameters(
        self, kernel: tf.Tensor, probabilities: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """What `compute` takes besides the kernel: steps and probabilities."""
        steps = self._learned_steps() if self.learned else self._max_abs_steps(kernel)
        steps = finite_step(tf.cast(steps, kernel.dtype))
        if probabilities is None:
            probabilities = tf.ones([len(self.bits)])
        return [
            tf.reshape(steps, [len(self.bits), -1]),
            tf.cast(probabilities, kernel.dtype),
        ]

    def compute(self, kernel: tf.Tensor, parameters: Sequence[tf.Tensor]) -> tf.Tensor:
        """Quantize `kernel` with `parameters`, reading no variable."""
        steps, weights = parameters
        if not self.fused:
            terms = [self._own(kernel, steps[j], b) for j, b in enumerate(self.bits)]
            return own.weighted(terms, weights)
        limits = tf.constant([symmetric_limit(b) for b in self.bits], kernel.dtype)
        add = weighted_sum(
            len(self.bits), "lsq" if self.learned else None, True, clip=self.learned
        )
        # One column a step: the axes that share one come first.
        columns = tf.reshape(kernel, [-1, steps.shape[1]])
        total = add(columns, steps, -limits, limits, weights)
        return tf.reshape(total, kernel.shape)

    def _own(self, kernel: tf.Tensor, steps: tf.Tensor, bits: int) -> tf.Tensor:
        """The registered function at one bit-width."""
        if not self.learned:
            return self._function(kernel, bits, self.shared_axes)
        shape = [
            1 if axis in self.shared_axes else size
            for axis, size in enumerate(kernel.shape)
        ]
        return self._function(kernel, tf.reshape(steps, shape), bits)

    def _learned_steps(self) -> tf.Tensor:
        """Steps [branches, ...], gradients scaled by `1 / sqrt(weights limit)`."""
        limits = np.array([symmetric_limit(b) for b in self.bits], "float32")
        factors = 1 / np.sqrt(self._group_size * limits)
        log2 = tf.convert_to_tensor(self.log2_step)
        shape = [-1] + [1] * (len(log2.shape) - 1)
        return bounded_power(scale_gradient(log2, factors.reshape(shape)))

    def _max_abs_steps(self, kernel: tf.Tensor) -> tf.Tensor:
        steps = [max_abs_step(kernel, b, self.shared_axes) for b in self.bits]
        return tf.stop_gradient(tf.stack(steps))

    def steps_tensor(self, kernel: tf.Tensor) -> tf.Tensor:
        """Steps of the only branch, shaped to broadcast against the kernel.

        Of a function of one's own that finds them, they are known in NumPy alone.
        """
        if self.learned:
            return self._learned_steps()[0]
        return self._max_abs_steps(kernel)[0]

    def step(self, kernel: Any, branch: int = 0) -> np.ndarray:
        """Steps of a branch, shaped to broadcast against the kernel."""
        if self.learned:
            return bounded_power(tf.convert_to_tensor(self.log2_step)[branch]).numpy()
        kernel, bits = tf.convert_to_tensor(kernel), self.bits[branch]
        if self.fused:
            return max_abs_step(kernel, bits, self.shared_axes).numpy()
        values = np.asarray(self._own(kernel, None, bits))
        return own.steps_of(values, symmetric_limit(bits), self.shared_axes)

    def codes(self, kernel: Any, branch: int = 0) -> np.ndarray:
        """Integer codes of a kernel on a branch's grid, as int8.

        Raises:
            ValueError: a function of one's own whose values are on no such grid.
        """
        bits = self.bits[branch]
        limit, step = symmetric_limit(bits), self.step(kernel, branch)
        if self.fused:
            # By the reciprocal, as `call` does it.
            scaled = np.asarray(kernel, "float32") * (1 / step)
            return np.round(np.clip(scaled, -limit, limit)).astype("int8")
        values = self._own(tf.convert_to_tensor(kernel, "float32"), step, bits)
        return own.codes_of(np.asarray(values), step, limit, self.method)

    def fit_steps(self, kernel: Any) -> None:
        """Set learned steps to those of least squared error on `kernel`.

        A line search over fractions of the max-abs step, for each branch and channel.
        A channel without a weight to fit takes the step that suits the largest weight
        of the others, without any the initial `2^-4`: next to nothing, training could
        never leave the range.

        Raises:
            ValueError: a weight that is not finite.
        """
        kernel = np.asarray(kernel, "float32")
        if not np.isfinite(kernel).all():
            raise ValueError(
                "A kernel must be finite to be quantized. "
                f"Received: {np.sum(~np.isfinite(kernel))} weights that are NaN or "
                f"infinite at {self.path or self.name!r}. "
                "Load or train the model again."
            )
        if not self.learned:
            return
        log2 = [self._best_log2_step(kernel, b) for b in self.bits]
        self.log2_step.assign(np.stack(log2))

    def _best_log2_step(self, kernel: np.ndarray, bits: int) -> np.ndarray:
        limit = symmetric_limit(bits)
        largest = np.abs(kernel).max(axis=self.shared_axes, keepdims=True)
        if self.fused:
            columns = kernel.reshape(-1, largest.size)
            best = least_error_steps(columns, limit).reshape(largest.shape)
        else:
            base = np.maximum(largest, 1e-6) / limit
            best = least_error_step(
                (base * fraction for fraction in KERNEL_FRACTIONS),
                lambda step: self._squared_error(kernel, step, bits),
            )
        dead = largest < best / 2  # every code is zero, whatever the step
        most = largest.max()
        default = most / limit if not dead.all() else 2.0**DEFAULT_LOG2_STEP
        return np.log2(np.where(dead, default, best))

    def _squared_error(
        self, kernel: np.ndarray, step: np.ndarray, bits: int
    ) -> np.ndarray:
        """Of each group of weights that shares a step, on a learned grid."""
        tensors = tf.constant(kernel), tf.constant(step, tf.float32)
        error = np.asarray(self._own(*tensors, bits)) - kernel
        return np.square(error).sum(axis=self.shared_axes, keepdims=True)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Shape is unchanged."""
        return input_shape

    def get_config(self) -> dict:
        """Plain JSON configuration."""
        return {
            **super().get_config(),
            "bits": list(self.bits),
            "method": self.method,
            "shared_axes": list(self.shared_axes),
        }
