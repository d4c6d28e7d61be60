"""The interface of a row of KERNEL_QUANTIZERS (`input_method`: of activations)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.quantizers import own
from gmpq_tf.quantizers.expected_grid import expected_grid
from gmpq_tf.quantizers.grid import symmetric_limit
from gmpq_tf.quantizers.line_search import (
    KERNEL_FRACTIONS,
    Nearest,
    least_error_step,
    least_error_steps,
)
from gmpq_tf.quantizers.mixture import Rounded, lsq_step_gradient, weighted_sum


class KernelMethod:
    """How kernels are quantized: a row of `KERNEL_QUANTIZERS`.

    A row is called as `(kernel, step, bits)` if its steps are learned, else as
    `(kernel, bits, axes)`, with the axes that share a step. Both return `code * step`.
    `kernel` has any shape, `step` broadcasts against it.
    """

    fused = False  # whether a mixture is one pass over the kernel
    learned = True  # whether steps are variables; else they follow the kernel
    follows_in_graph = False  # whether `following_step` works on symbolic tensors
    uniform = False  # whether codes are all whole numbers between the two limits
    stochastic = False  # whether training draws codes

    def __call__(self, kernel: tf.Tensor, *args: Any) -> tf.Tensor:
        """Quantizes a kernel, any shape, to one bit-width; differentiable."""
        raise NotImplementedError

    def largest_code(self, bits: int) -> int:
        """Largest code, 1 to 127; it decides the kernel's integer type in a file.

        Raises:
            ValueError: the row has no such bit-width.
        """
        return symmetric_limit(bits)

    def check(self, name: str, bits: Sequence[int]) -> bool:
        """Whether values are whole multiples of a step, as integer kernels need.

        Raises:
            ValueError: the row cannot be called, or not with these bits.
        """
        limits = [self.largest_code(b) for b in bits]
        return own.check_kernel_quantizer(self, name, bits, limits, self.learned)

    def values(
        self,
        kernel: tf.Tensor,
        step: tf.Tensor | None,
        bits: int,
        axes: Sequence[int],
    ) -> tf.Tensor:
        """The quantized kernel, any shape; `step` is unused where none is learned."""
        return self(kernel, step, bits) if self.learned else self(kernel, bits, axes)

    def mixture(
        self,
        kernel: tf.Tensor,
        steps: tf.Tensor,
        bits: Sequence[int],
        weights: tf.Tensor,
        axes: Sequence[int],
    ) -> tf.Tensor:
        """`sum_i w_i q_i(W)` (eq. 5), of the shape of W; a single branch has weight 1.

        Args:
            kernel: any shape.
            steps: [branches, ...], each of which broadcasts against the kernel.
            bits: bit-width of each branch.
            weights: [branches].
            axes: kernel axes that share a step.
        """
        terms = [self.values(kernel, steps[i], b, axes) for i, b in enumerate(bits)]
        return own.weighted(terms, weights)

    def draw(self, kernel: tf.Tensor, *args: Any) -> tf.Tensor:
        """`code * step` with drawn codes, of the kernel's shape.

        Only rows that are `stochastic` have it; see `InputMethod.draw`.

        Args:
            kernel: any shape.
            args: step, smallest and largest code, seed [2], and the number of the draw
                among those of this seed.
        """
        raise NotImplementedError

    def drawn(
        self,
        kernel: tf.Tensor,
        steps: tf.Tensor,
        bits: Sequence[int],
        weights: tf.Tensor,
        seed: tf.Tensor,
    ) -> tf.Tensor:
        """As `mixture`, of the shape of W, with drawn codes.

        Args:
            kernel: any shape.
            steps: [branches, ...], each of which broadcasts against the kernel.
            bits: bit-width of each branch.
            weights: [branches].
            seed: [2], of the draws.
        """
        terms = []
        for i, width in enumerate(bits):
            limit = tf.cast(self.largest_code(width), kernel.dtype)
            terms.append(self.draw(kernel, steps[i], -limit, limit, seed, i))
        return own.weighted(terms, weights)

    def one_rounding(
        self,
        kernel: tf.Tensor,
        steps: tf.Tensor,
        bits: Sequence[int],
        weights: tf.Tensor,
    ) -> tf.Tensor:
        """One rounding on the mean grid, of the shape of W: see `expected_grid`.

        Only for rows that are `uniform`.

        Args:
            kernel: any shape.
            steps: [branches, ...], each of which broadcasts against the kernel.
            bits: bit-width of each branch.
            weights: [branches].
        """
        limits = tf.constant([float(self.largest_code(b)) for b in bits], kernel.dtype)
        return expected_grid(
            kernel, steps, -limits, limits, weights, tf.round, clip=self.learned
        )

    def following_step(self, kernel: Any, bits: int, axes: Sequence[int]) -> Any:
        """Steps of a row that learns none, of a shape that broadcasts to the kernel."""
        values = np.asarray(self.values(kernel, None, bits, axes))
        return own.steps_of(values, self.largest_code(bits), axes)

    def codes(
        self,
        kernel: np.ndarray,
        step: np.ndarray,
        bits: int,
        axes: Sequence[int],
        name: str,
    ) -> np.ndarray:
        """Integer codes of a float32 kernel, int8 of its shape.

        Raises:
            ValueError: the quantized values are not whole multiples of the steps.
        """
        values = self.values(tf.convert_to_tensor(kernel), step, bits, axes)
        return own.codes_of(np.asarray(values), step, self.largest_code(bits), name)

    def fit(self, kernel: np.ndarray, bits: int, axes: Sequence[int]) -> np.ndarray:
        """Steps of least squared error, of a shape that broadcasts to the kernel.

        Args:
            kernel: finite, float32, in the shape of the layer.
            bits: 2 to 8.
            axes: axes that share a step.
        """
        tensor = tf.constant(kernel)

        def error_of(step: np.ndarray) -> np.ndarray:
            found = self.values(tensor, tf.constant(step, tf.float32), bits, axes)
            error = np.asarray(found) - kernel
            return np.square(error).sum(axis=tuple(axes), keepdims=True)

        largest = np.abs(kernel).max(axis=tuple(axes), keepdims=True)
        base = np.maximum(largest, 1e-6) / self.largest_code(bits)
        return least_error_step((base * f for f in KERNEL_FRACTIONS), error_of)


class GridKernel(KernelMethod):
    """A row that rounds to the nearest of its codes, computed in one fused pass.

    Its codes are all whole numbers, unless `rounded` and `nearest` are overridden.
    """

    fused = True

    def check(self, name: str, bits: Sequence[int]) -> bool:
        """True for valid bits: values are codes times a step by construction."""
        return all(self.largest_code(b) for b in bits)

    def rounded(self, bits: tuple[int, ...]) -> Rounded:
        """A function that rounds `W / step` [branches, rows, columns] to codes.

        It is given clipped values. The same object must be returned for the same
        `bits`, since compiled functions are cached by it.
        """
        return tf.round

    def nearest(self, bits: int) -> Nearest:
        """The same for one bit-width in NumPy: `(scaled, out)`, values not clipped."""
        limit = np.float32(self.largest_code(bits))

        def round_and_clip(scaled: np.ndarray, out: np.ndarray) -> np.ndarray:
            return np.rint(np.clip(scaled, -limit, limit, out=out), out=out)

        return round_and_clip

    def mixture(
        self,
        kernel: tf.Tensor,
        steps: tf.Tensor,
        bits: Sequence[int],
        weights: tf.Tensor,
        axes: Sequence[int],
    ) -> tf.Tensor:
        """The weighted sum in one fused pass, any shape; see `KernelMethod.mixture`."""
        limits = [float(self.largest_code(b)) for b in bits]
        lows = tf.constant([-limit for limit in limits], kernel.dtype)
        highs = tf.constant(limits, kernel.dtype)
        gradient = lsq_step_gradient if self.learned else None
        add = weighted_sum(
            len(bits), gradient, self.rounded(tuple(bits)), clip=self.learned
        )
        # The axes that share a step come first: columns of `add`, whatever their shape.
        order, inverse = orders(len(kernel.shape), axes)
        moved = tf.transpose(kernel, order) if order else kernel
        total = add(moved, tf.reshape(steps, [len(bits), -1]), lows, highs, weights)
        return tf.transpose(total, inverse) if order else total

    def codes(
        self,
        kernel: np.ndarray,
        step: np.ndarray,
        bits: int,
        axes: Sequence[int],
        name: str,
    ) -> np.ndarray:
        """Integer codes, int8 of the kernel's shape.

        Multiplies by the reciprocal of the step, as the fused pass does, so that both
        round alike.
        """
        scaled = kernel * (1 / step)
        return self.nearest(bits)(scaled, scaled).astype("int8")

    def fit(self, kernel: np.ndarray, bits: int, axes: Sequence[int]) -> np.ndarray:
        """Steps of least squared error, of a shape that broadcasts; all at once."""
        order, _ = orders(kernel.ndim, axes)
        moved = np.ascontiguousarray(kernel.transpose(order)) if order else kernel
        shape = [1 if i in axes else size for i, size in enumerate(kernel.shape)]
        columns = moved.reshape(-1, int(np.prod(shape)))
        steps = least_error_steps(columns, self.largest_code(bits), self.nearest(bits))
        return steps.reshape(shape)


class FunctionKernel(KernelMethod):
    """A function `(kernel, step, bits)` or `(kernel, bits, axes)` as a row.

    Args:
        function: its values and its gradients are used unchanged.
    """

    def __init__(self, function: Callable[..., tf.Tensor]) -> None:
        self.function = function
        self.learned = own.takes_step(function)

    def __call__(self, kernel: tf.Tensor, *args: Any) -> tf.Tensor:
        """The function's value for a kernel, of the kernel's shape."""
        return self.function(kernel, *args)


def orders(rank: int, axes: Sequence[int]) -> tuple[list[int] | None, list[int] | None]:
    """A permutation that moves `axes` to the front, and its inverse.

    Both are None if the axes are in front already.

    Args:
        rank: number of axes.
        axes: the axes to move, in their new order.
    """
    order = [*axes, *(i for i in range(rank) if i not in axes)]
    if order == list(range(rank)):
        return None, None
    return order, [order.index(i) for i in range(rank)]
