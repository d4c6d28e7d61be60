"""ALQ: kernels as sums of binary bases; whole coordinates make the codes fit int8."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers.grid import symmetric_limit
from gmpq_tf.quantizers.kernel_method import KernelMethod, orders

# The sums of n bases are 2^n codes that are all even or all odd: at most 128 of them
# lie within int8, so 8 bases do not fit.
MOST_BITS = 7
SUM4, SUM8 = 7, 127  # largest sum of a channel's coordinates: in INT4, in INT8
NARROW = 3  # bits up to which codes fit INT4
ROUNDS = 3  # alternations between choosing bases and fitting coordinates
# Initial coordinates that double from base to base, like the bits of a uniform grid:
# their sum, as a share of the largest weight.
SHARES = (0.4, 0.55, 0.7, 0.9)
SUMS = 3  # how far below its limit the sum of whole coordinates is tried
TINY = 1e-6


class Alq(KernelMethod):
    """Kernels on a grid of adaptive binary bases (ALQ).

    `q(w) = s sum_i n_i beta_i` with `beta_i` in {-1, 1}, as many bases as bits, and
    whole coordinates `n_i >= 1` of each output channel. Bases and coordinates are
    fitted in alternation: each weight takes the nearest of the 2^bits sums, then a
    least squares fit gives the coordinates. Of the results from five initial guesses
    the one of least squared error is kept. The gradient is the identity.

    Source: Qu et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR
    2020. Unlike the paper coordinates are whole multiples of one step, so that an
    integer file can hold the codes; errors are not weighted by the curvature of the
    loss; a channel is one group and keeps all its bases; and both are fitted anew in
    every training step.
    """

    learned = False
    follows_in_graph = True

    def __call__(
        self, kernel: tf.Tensor, bits: int, axes: Sequence[int] | None = None
    ) -> tf.Tensor:
        """Quantizes a kernel of any shape to one bit-width.

        The axes in `axes` share a step (None: all of them).
        """
        codes, step = self._fitted(kernel, bits, axes)
        # In this order the value keeps every bit: what is added to it is exactly 0.
        return tf.stop_gradient(codes * step) + (kernel - tf.stop_gradient(kernel))

    def largest_code(self, bits: int) -> int:
        """Largest sum of a channel's coordinates: 7 for 2 and 3 bits, else 127.

        Raises:
            PolicyError: 8 bits, whose sums do not fit into int8.
        """
        symmetric_limit(bits)  # raises if this is not a bit-width
        if bits > MOST_BITS:
            raise PolicyError(
                f"ALQ kernels have 2 to {MOST_BITS} bits: int8 holds no more sums of "
                f"binary bases. Received: bits={bits}. Give candidates and pinned "
                f"layers {MOST_BITS} weight bits or fewer, or take "
                "kernel_quantizer='lsq'."
            )
        return SUM4 if bits <= NARROW else SUM8

    def check(self, name: str, bits: Sequence[int]) -> bool:
        """True for valid bits: values are codes times a step by construction."""
        return all(self.largest_code(b) for b in bits)

    def following_step(self, kernel: Any, bits: int, axes: Sequence[int]) -> Any:
        """Positive steps of a kernel, of a shape that broadcasts against it."""
        return self._fitted(tf.convert_to_tensor(kernel), bits, axes)[1]

    def codes(
        self,
        kernel: np.ndarray,
        step: np.ndarray,
        bits: int,
        axes: Sequence[int],
        name: str,
    ) -> np.ndarray:
        """Integer codes of a float32 kernel, int8 of the same shape.

        They are fitted anew; `step` and `name` are not used.
        """
        codes, _ = self._fitted(tf.convert_to_tensor(kernel), bits, axes)
        return np.asarray(codes).astype("int8")

    def _fitted(
        self, kernel: tf.Tensor, bits: int, axes: Sequence[int] | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Codes, of the kernel's shape, and steps that broadcast; without gradient."""
        axes = range(len(kernel.shape)) if axes is None else axes
        order, inverse = orders(len(kernel.shape), axes)
        fixed = tf.cast(tf.stop_gradient(kernel), tf.float32)
        moved = tf.transpose(fixed, order) if order else fixed
        shape = [1 if i in axes else size for i, size in enumerate(kernel.shape)]
        columns = tf.reshape(moved, [-1, int(np.prod(shape))])
        codes, steps = bases(columns, bits, self.largest_code(bits))
        codes = tf.reshape(codes, moved.shape)
        codes = tf.transpose(codes, inverse) if order else codes
        return tf.cast(codes, kernel.dtype), tf.cast(
            tf.reshape(steps, shape), kernel.dtype
        )


alq = Alq()


def bases(columns: tf.Tensor, count: int, limit: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Fits binary bases to each column: codes and steps.

    Args:
        columns: float32 [rows, columns].
        count: number of bases.
        limit: largest sum of a column's coordinates.

    Returns:
        Whole numbers [rows, columns], and positive steps [columns].
    """
    weights = tf.transpose(columns)
    size = tf.maximum(tf.reduce_max(tf.abs(weights), 1), TINY)
    weights /= size[:, None]
    starts = [greedy(weights, count)]
    doubled = tf.constant(2.0 ** np.arange(count)[::-1] / (2**count - 1), tf.float32)
    starts += [share * tf.ones_like(starts[0]) * doubled for share in SHARES]
    tiled = tf.tile(weights, [len(starts), 1])
    coordinates = tf.concat(starts, 0)
    for _ in range(ROUNDS):
        coordinates = refitted(tiled, coordinates)
    codes, steps = on_whole_numbers(tiled, coordinates, limit)
    error = tf.reduce_sum(tf.square(codes * steps[:, None] - tiled), 1)
    best = tf.argmin(tf.reshape(error, [len(starts), -1]), 0)
    place = best * columns.shape[1] + tf.range(columns.shape[1], dtype=best.dtype)
    return tf.transpose(tf.gather(codes, place)), tf.gather(steps, place) * size


def on_whole_numbers(
    weights: tf.Tensor, coordinates: tf.Tensor, limit: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Rounds coordinates, and gives codes [columns, rows] and their steps [columns].

    Args:
        weights: [columns, rows].
        coordinates: [columns, count].
        limit: as of `bases`.
    """
    whole = whole_numbers(coordinates, limit)
    step = tf.reduce_sum(coordinates, 1) / tf.reduce_sum(whole, 1)
    codes, _ = nearest_sums(weights / step[:, None], whole)
    norm = tf.reduce_sum(codes**2, 1)  # 0 for a column of zeros
    step = tf.math.divide_no_nan(tf.reduce_sum(weights * codes, 1), norm)
    step = tf.maximum(step, TINY)
    codes, _ = nearest_sums(weights / step[:, None], whole)
    return codes, step


def greedy(weights: tf.Tensor, count: int) -> tf.Tensor:
    """Coordinates [columns, count] of greedy bases: each the signs of the residual.

    Args:
        weights: [columns, rows].
        count: number of bases.
    """
    left, found = weights, []
    for _ in range(count):
        found.append(tf.reduce_mean(tf.abs(left), 1))
        left -= found[-1][:, None] * tf.where(left < 0, -1.0, 1.0)
    return tf.maximum(tf.stack(found, 1), TINY)


def refitted(weights: tf.Tensor, coordinates: tf.Tensor) -> tf.Tensor:
    """Least squares coordinates [columns, count] for the bases nearest to weights.

    `(B'B + r I)^-1 (B'w + r a)`; a small r keeps the old coordinate `a` where the
    weights do not determine a new one.

    Args:
        weights: [columns, rows].
        coordinates: the old ones, `a`, [columns, count].
    """
    _, signs = nearest_sums(weights, coordinates)
    count, kept = coordinates.shape[1], 1e-3 * tf.cast(tf.shape(weights)[1], tf.float32)
    gram = tf.matmul(signs, signs, transpose_a=True) + kept * tf.eye(count)
    right = tf.einsum("crn,cr->cn", signs, weights) + kept * coordinates
    found = tf.linalg.solve(gram, right[..., None])[..., 0]
    return tf.maximum(tf.sort(tf.abs(found), 1, "DESCENDING"), TINY)


def nearest_sums(
    weights: tf.Tensor, coordinates: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum `sum_i a_i beta_i` nearest to each weight, and its signs `beta`.

    Args:
        weights: [columns, rows].
        coordinates: `a`, [columns, count].

    Returns:
        Sums [columns, rows] and signs [columns, rows, count].
    """
    signs = tf.constant(_signs(coordinates.shape[1]))
    sums = tf.matmul(coordinates, signs, transpose_b=True)
    order = tf.argsort(sums, 1)
    ordered = tf.gather(sums, order, batch_dims=1)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    place = tf.searchsorted(middles, weights)
    values = tf.gather(ordered, place, batch_dims=1)
    return values, tf.gather(signs, tf.gather(order, place, batch_dims=1))


def whole_numbers(coordinates: tf.Tensor, limit: int) -> tf.Tensor:
    """Coordinates rounded to whole numbers, 1 or more, whose sum is at most `limit`.

    Several sums up to the limit are tried; the one that changes the ratios of the
    coordinates least is taken.

    Args:
        coordinates: positive, the largest first, [columns, count].
        limit: largest sum, at least the number of coordinates.
    """
    total = tf.reduce_sum(coordinates, 1, keepdims=True)
    tried, errors = [], []
    for wanted in range(max(limit - SUMS, coordinates.shape[1]), limit + 1):
        rounded = tf.maximum(tf.round(coordinates * (wanted / total)), 1.0)
        over = tf.maximum(tf.reduce_sum(rounded, 1) - limit, 0.0)
        first = tf.maximum(rounded[:, :1] - over[:, None], 1.0)
        tried.append(tf.concat([first, rounded[:, 1:]], 1))
        ratios = tried[-1] / tf.reduce_sum(tried[-1], 1, keepdims=True)
        errors.append(tf.reduce_sum(tf.square(ratios - coordinates / total), 1))
    best = tf.argmin(tf.stack(errors, 1), 1)
    return tf.gather(tf.stack(tried, 1), best, batch_dims=1)


@functools.cache
def _signs(count: int) -> np.ndarray:
    """All choices of signs, [2^count, count]."""
    return np.array(list(itertools.product((-1, 1), repeat=count)), "float32")
