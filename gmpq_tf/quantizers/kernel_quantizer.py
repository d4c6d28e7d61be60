"""The Keras layer that owns a kernel quantizer's steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gmpq_tf.policy import PolicyError, check_bits
from gmpq_tf.quantizers.alq import alq
from gmpq_tf.quantizers.apot import apot
from gmpq_tf.quantizers.draws import add_draws, next_seed
from gmpq_tf.quantizers.expected_grid import check_one_rounding
from gmpq_tf.quantizers.grid import bounded_power, finite_step
from gmpq_tf.quantizers.kernel_method import FunctionKernel, KernelMethod
from gmpq_tf.quantizers.lsq import lsq_kernel
from gmpq_tf.quantizers.max_abs import max_abs
from gmpq_tf.quantizers.observing import observers_now
from gmpq_tf.quantizers.rq import rq_kernel
from gmpq_tf.spelling import lookup

# Rows, or functions `(kernel, step, bits)`, whose step is then learned, or `(kernel,
# bits, axes)`, which find one step for the weights along `axes`; both return
# `code * step`.
KERNEL_QUANTIZERS: dict[str, KernelMethod | Callable] = {
    "max_abs": max_abs,
    "lsq": lsq_kernel,
    "apot": apot,
    "alq": alq,
    "rq": rq_kernel,
}
DEFAULT_KERNEL_QUANTIZER = "lsq"
DEFAULT_LOG2_STEP = -4.0


def kernel_method(name: str) -> KernelMethod:
    """The row of `KERNEL_QUANTIZERS` with this name.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    found = lookup(KERNEL_QUANTIZERS, name, "kernel quantizer")
    return found if isinstance(found, KernelMethod) else FunctionKernel(found)


def check_widths(name: str, weight_bits: Mapping[str, Sequence[int]]) -> None:
    """Refuses layers with bit-widths that the kernel quantizer does not support.

    Args:
        name: a name in `KERNEL_QUANTIZERS`.
        weight_bits: layer name -> bit-widths.

    Raises:
        PolicyError: there are such layers; all are named.
    """
    method, refused, reason = kernel_method(name), [], ""
    for layer, candidates in weight_bits.items():
        for bits in candidates:
            try:
                method.largest_code(bits)
            except PolicyError as error:
                refused.append(f"{layer} W{bits}")
                reason = str(error)
    if refused:
        raise PolicyError(
            f"The kernel quantizer {name!r} has not the bits of these layers: "
            f"{', '.join(refused)}. {reason}"
        )


@keras.saving.register_keras_serializable("gmpq_tf")
class KernelQuantizer(keras.layers.Layer):
    """Quantizes a kernel to one bit-width, or to a weighted sum of several.

    One branch: `q_b(W)`. Several: `sum_i pi_i q_{b_i}(W)`, the compositional kernel of
    eq. 5. Grids are symmetric, with the codes `-(2^(b-1)-1) .. 2^(b-1)-1` unless the
    method has its own.

    Args:
        bits: a bit-width, or the candidate bit-widths, each 2 to 8.
        method: a name in `KERNEL_QUANTIZERS`; "lsq" learns the steps (in the
            logarithm), "max_abs" follows the largest weight, "apot" has sums of powers
            of two as codes, "alq" sums of binary bases fitted to the weights, and "rq"
            draws codes in training. The values and gradients of a registered function
            are used unchanged.
        shared_axes: kernel axes that share one step, ascending: all of them for one
            step per tensor, all but the output channels for one per channel.
        one_rounding: round once, on the mean of the branches' grids, instead of once
            per branch; see `quantizers.expected_grid`.

    Raises:
        ValueError: an unknown method, one without these bits, a function that cannot
            be called, or invalid axes.
    """

    def __init__(
        self,
        bits: int | Sequence[int],
        method: str = DEFAULT_KERNEL_QUANTIZER,
        shared_axes: Sequence[int] = (0, 1, 2),
        one_rounding: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        candidates = bits if isinstance(bits, (list, tuple)) else (bits,)
        self.bits = tuple(check_bits("bits", b) for b in candidates)
        self.method = method
        self.row = kernel_method(method)
        self.learned = self.row.learned
        self.fused = self.row.fused
        self.one_rounding = check_one_rounding(self.row, method, one_rounding)
        self.shared_axes = tuple(shared_axes)
        if self.shared_axes != tuple(sorted({i for i in shared_axes if i >= 0})):
            raise ValueError(
                "shared_axes must be axes of the kernel, ascending, none twice. "
                f"Received: shared_axes={shared_axes!r}. Pass such as (0, 1, 2)."
            )
        # Whether values are whole multiples of a step, as integer kernels need.
        self.on_grid = self.row.check(method, self.bits)

    @property
    def is_known_to_graph(self) -> bool:
        """Whether a graph can compute the steps.

        Those of a registered function that learns none are found in NumPy, from its
        values.
        """
        return self.learned or self.row.follows_in_graph

    def largest_code(self, branch: int = 0) -> int:
        """Largest code of a branch; the smallest is its negative."""
        return self.row.largest_code(self.bits[branch])

    def build(self, kernel_shape: Sequence[int]) -> None:
        """Creates the learned steps, one for each branch and channel.

        Raises:
            ValueError: `shared_axes` names axes that the kernel does not have.
        """
        if max(self.shared_axes, default=-1) >= len(kernel_shape):
            raise ValueError(
                f"A kernel of shape {tuple(kernel_shape)} has axes 0 to "
                f"{len(kernel_shape) - 1}. Received: shared_axes={self.shared_axes!r} "
                f"of {self.name!r}. Pass axes of the kernel."
            )
        shape = [
            1 if axis in self.shared_axes else size
            for axis, size in enumerate(kernel_shape)
        ]
        self._group_size = math.prod(kernel_shape) / math.prod(shape)
        self.draws = add_draws(self) if self.row.stochastic else None
        if self.learned:
            self.log2_step = self.add_weight(
                name="log2_step",
                shape=(len(self.bits), *shape),
                initializer=keras.initializers.Constant(DEFAULT_LOG2_STEP),
                autocast=False,
                dtype="float32",
            )

    def call(
        self,
        kernel: tf.Tensor,
        probabilities: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Quantizes `kernel`, any shape; `probabilities` [branches] weigh branches."""
        if observers_now() is not None:
            return kernel
        kernel = tf.convert_to_tensor(kernel)
        return self.compute(kernel, self.parameters(kernel, probabilities, training))

    def parameters(
        self,
        kernel: tf.Tensor,
        probabilities: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> list[tf.Tensor]:
        """What `compute` needs besides the kernel: steps, probabilities [branches].

        In training of a row that draws codes a seed [2] follows.
        """
        if self.learned:
            steps = self._learned_steps()
        elif self.row.follows_in_graph:
            steps = self._following_steps(kernel)
        else:
            steps = tf.ones([len(self.bits)])  # the row finds them itself
        if probabilities is None:
            probabilities = tf.ones([len(self.bits)])
        found = [
            finite_step(tf.cast(steps, kernel.dtype)),
            tf.cast(probabilities, kernel.dtype),
        ]
        if training and self.draws is not None:
            found.append(next_seed(self.draws))
        return found

    def compute(self, kernel: tf.Tensor, parameters: Sequence[tf.Tensor]) -> tf.Tensor:
        """Quantizes `kernel`, any shape, with given `parameters`; reads no variable."""
        steps, weights, *seed = parameters
        if seed:
            return self.row.drawn(kernel, steps, self.bits, weights, seed[0])
        if self.one_rounding and len(self.bits) > 1:
            return self.row.one_rounding(kernel, steps, self.bits, weights)
        return self.row.mixture(kernel, steps, self.bits, weights, self.shared_axes)

    def _learned_steps(self) -> tf.Tensor:
        """Steps [branches, ...], whose gradient is scaled as in LSQ.

        The factor is `1 / sqrt(n limit)`, for `n` weights that share a step.
        """
        limits = np.array([self.row.largest_code(b) for b in self.bits], "float32")
        factors = 1 / np.sqrt(self._group_size * limits)
        log2 = tf.convert_to_tensor(self.log2_step)
        shape = [-1] + [1] * (len(log2.shape) - 1)
        return bounded_power(log2, factors.reshape(shape))

    def _following_steps(self, kernel: tf.Tensor) -> tf.Tensor:
        steps = [
            self.row.following_step(kernel, b, self.shared_axes) for b in self.bits
        ]
        return tf.stop_gradient(tf.stack(steps))

    def steps_tensor(self, kernel: tf.Tensor) -> tf.Tensor:
        """Steps of the only branch, of a shape that broadcasts against the kernel.

        Only where `is_known_to_graph`.
        """
        steps = self._learned_steps() if self.learned else self._following_steps(kernel)
        return steps[0]

    def step(self, kernel: Any, branch: int = 0) -> np.ndarray:
        """Steps of a branch, of a shape that broadcasts against the kernel."""
        if self.learned:
            return bounded_power(tf.convert_to_tensor(self.log2_step)[branch]).numpy()
        kernel, bits = tf.convert_to_tensor(kernel), self.bits[branch]
        return np.asarray(self.row.following_step(kernel, bits, self.shared_axes))

    def codes(self, kernel: Any, branch: int = 0) -> np.ndarray:
        """Integer codes of a kernel on a branch's grid, int8 of its shape.

        Raises:
            ValueError: a registered function whose values are not multiples of a step.
        """
        kernel = np.asarray(kernel, "float32")
        step, bits = self.step(kernel, branch), self.bits[branch]
        return self.row.codes(kernel, step, bits, self.shared_axes, self.method)

    def fit_steps(self, kernel: Any) -> None:
        """Sets learned steps to those of least squared error on `kernel`.

        A line search over fractions of the max-abs step, for each branch and channel.
        A channel of zeros takes the step that suits the kernel's largest weight; a
        kernel of zeros keeps the initial `2^-4`, since training could hardly enlarge a
        tiny step.

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
        largest = np.abs(kernel).max(axis=self.shared_axes, keepdims=True)
        best = self.row.fit(kernel, bits, self.shared_axes)
        dead = largest < best / 2  # every code is zero, whatever the step
        default = largest.max() / self.row.largest_code(bits)
        if dead.all():
            default = 2.0**DEFAULT_LOG2_STEP
        return np.log2(np.where(dead, default, best))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "bits": list(self.bits),
            "method": self.method,
            "shared_axes": list(self.shared_axes),
            **({"one_rounding": True} if self.one_rounding else {}),
        }
