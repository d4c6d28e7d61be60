"""The interface of a row of INPUT_QUANTIZERS.

Layers, calibration, export and TFMOT use this interface only. A registered function is
wrapped as a row: the defaults of `InputMethod` do everything by calling the function. A
row that can do better, such as in one fused pass, overrides those methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.quantizers import own
from gmpq_tf.quantizers.expected_grid import expected_grid
from gmpq_tf.quantizers.grid import code_limit, lowest_code
from gmpq_tf.quantizers.line_search import least_error_step
from gmpq_tf.quantizers.mixture import mixture, steps_and_codes
from gmpq_tf.quantizers.straight_through import floor_half_up


class InputMethod:
    """How activations are quantized: a row of `INPUT_QUANTIZERS`.

    Its grids are those of integer kernels: codes `lowest_code .. code_limit` times a
    step, which is the range over the largest code.
    """

    fused = False  # whether a mixture is one pass over the values
    uniform = False  # whether a value is rounded to the nearest code, halves upwards
    learns_inside = True  # whether values inside the range move it
    stochastic = False  # whether training draws codes

    def __call__(
        self, x: tf.Tensor, input_range: tf.Tensor, bits: int, signed: bool = False
    ) -> tf.Tensor:
        """Quantizes `x`, any shape, to one bit-width; differentiable.

        `input_range` is the value of the largest code, a positive scalar.
        """
        raise NotImplementedError

    def check(self, name: str, bits: Sequence[int], signed: bool) -> bool:
        """Whether each value is rounded to the nearest code, as integer kernels do it.

        Raises:
            ValueError: the row cannot be called, or not with these bits.
        """
        return own.check_input_quantizer(self, name, bits, signed)

    def mixture(
        self,
        bits: tuple[int, ...],
        signed: bool | None,
        nested: bool,
        learn_range: bool,
    ) -> Callable[..., tf.Tensor]:
        """The row's weighted sum of branches, any shape; see `mixture.mixture`."""
        return own.mixture(bits, signed, self, nested, learn_range)

    def draw(self, x: tf.Tensor, *args: Any) -> tf.Tensor:
        """`code * step` with drawn codes, like `x`, where the row is `stochastic`.

        Args:
            x: any shape.
            args: step, smallest and largest code, seed [2], and the number of the draw
                among those of this seed.
        """
        raise NotImplementedError

    def drawn(
        self,
        bits: tuple[int, ...],
        signed: bool | None,
        nested: bool,
        learn_range: bool,
    ) -> Callable[..., tf.Tensor]:
        """As `mixture`, any shape, with drawn codes; the function takes a seed [2]."""

        def call(
            x: tf.Tensor,
            ranges: tf.Tensor,
            zeros: tf.Tensor,
            weights: tf.Tensor,
            seed: tf.Tensor,
        ) -> tf.Tensor:
            if not learn_range:
                ranges = tf.stop_gradient(ranges)
            grids = steps_and_codes(ranges, zeros, bits, signed, nested)
            each = enumerate(zip(*map(tf.unstack, grids), strict=True))
            terms = [self.draw(x, *grid, seed, i) for i, grid in each]
            return own.weighted(terms, weights)

        return call

    def one_rounding(
        self,
        bits: tuple[int, ...],
        signed: bool | None,
        nested: bool,
        learn_range: bool,
    ) -> Callable[..., tf.Tensor]:
        """As `mixture`, any shape, but with one rounding: see `expected_grid`.

        Only for rows that are `uniform`.
        """

        def call(
            x: tf.Tensor, ranges: tf.Tensor, zeros: tf.Tensor, weights: tf.Tensor
        ) -> tf.Tensor:
            if not learn_range:
                ranges = tf.stop_gradient(ranges)
            grids = steps_and_codes(ranges, zeros, bits, signed, nested)
            return expected_grid(
                x, *grids, weights, floor_half_up, inside=self.learns_inside
            )

        return call

    def squared_error(
        self, values: np.ndarray, step: float, bits: int, signed: bool
    ) -> float:
        """Mean squared error of quantizing values [n] to a grid of this step."""
        ranges = tf.constant(step * code_limit(bits, signed), tf.float32)
        found = self(tf.constant(values), ranges, bits, signed)
        return float(np.mean(np.square(np.asarray(found) - values)))

    def fit(
        self, values: np.ndarray, steps: Sequence[float], bits: int, signed: bool
    ) -> float:
        """The candidate step with the least squared error.

        Args:
            values: float32 [n], in the units of the step.
            steps: candidates; of equally good ones the first is taken.
            bits: 2 to 8.
            signed: whether the grid has negative codes.
        """
        best = least_error_step(
            map(np.float64, steps),
            lambda s: np.float64(self.squared_error(values, float(s), bits, signed)),
        )
        return float(best)


class GridInput(InputMethod):
    """A row that rounds to the nearest code, halves upwards, and is fused."""

    fused = True
    uniform = True

    def step_gradient(self, *terms: tf.Tensor) -> tf.Tensor:
        """`dq/ds` of each element, any shape; see `mixture.StepGradient`."""
        raise NotImplementedError

    def check(self, name: str, bits: Sequence[int], signed: bool) -> bool:
        """True: the row rounds to the nearest code by construction."""
        return True

    def mixture(
        self,
        bits: tuple[int, ...],
        signed: bool | None,
        nested: bool,
        learn_range: bool,
    ) -> Callable[..., tf.Tensor]:
        """The weighted sum in one fused pass, any shape; see `mixture.mixture`."""
        return mixture(bits, signed, self.step_gradient, nested, learn_range)

    def squared_error(
        self, values: np.ndarray, step: float, bits: int, signed: bool
    ) -> float:
        """Mean squared error of values [n], in NumPy, which is faster."""
        low, high = lowest_code(bits, signed), code_limit(bits, signed)
        # In place: sixty steps per branch are tried, and allocating arrays would double
        # the time.
        error = values / np.float32(step)
        np.clip(error, low, high, out=error)
        error += 0.5
        np.floor(error, out=error)
        error *= np.float32(step)
        error -= values
        return float(np.mean(np.square(error, out=error)))


class FunctionInput(InputMethod):
    """A function `(x, input_range, bits, signed)` as a row.

    Args:
        function: its values and its gradients are used unchanged.
    """

    def __init__(self, function: Callable[..., tf.Tensor]) -> None:
        self.function = function

    def __call__(
        self, x: tf.Tensor, input_range: tf.Tensor, bits: int, signed: bool = False
    ) -> tf.Tensor:
        """The function's value for `x`, of the shape of `x`."""
        return self.function(x, input_range, bits, signed)
