"""APoT: kernels of sums of powers of two, exact in int8 from 2 to 6 bits."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers.grid import symmetric_limit
from gmpq_tf.quantizers.kernel_method import GridKernel
from gmpq_tf.quantizers.line_search import Nearest
from gmpq_tf.quantizers.mixture import Rounded
from gmpq_tf.quantizers.straight_through import straight_through

INT8_LIMIT = 127
MOST_BITS = 6  # the largest code of 6 bits is 100; that of 7 bits leaves int8


class Apot(GridKernel):
    """Additive powers of two for kernels.

    `q = sign(w) s l`, where `l` is the level nearest to `|w| / s` (the smaller of two
    that are equally near). `levels` lists the levels: all sums of one element from each
    set. Within `alpha = s max(l)`: `dq/dw = 1` and `dq/dalpha = (q - w) / alpha`;
    outside: 0 and `sign(w)`.

    Source: Li, Dong and Wang, "Additive Powers-of-Two Quantization", ICLR 2020,
    equations 5-7. Unlike the paper the logarithm of the step is learned instead of
    `alpha`, and the weights are not normalized first: the step takes up their scale.
    """

    def __call__(self, kernel: tf.Tensor, step: tf.Tensor, bits: int) -> tf.Tensor:
        """Quantizes a kernel of any shape to one bit-width; the step broadcasts."""
        limit = tf.cast(self.largest_code(bits), kernel.dtype)
        scaled = tf.minimum(tf.maximum(kernel / step, -limit), limit)
        codes = self.rounded((bits,))(scaled[None])[0]
        return straight_through(codes, scaled) * step

    def largest_code(self, bits: int) -> int:
        """Largest level: 1, 4, 10, 48, 100 for 2 to 6 bits.

        Raises:
            PolicyError: 7 bits or more, whose levels do not fit into int8.
        """
        symmetric_limit(bits)  # raises if this is not a bit-width
        largest = int(levels(bits)[-1])
        if largest > INT8_LIMIT:
            raise PolicyError(
                f"APoT kernels have 2 to {MOST_BITS} bits: int8 holds codes up to "
                f"{INT8_LIMIT}. Received: bits={bits}, whose largest code is "
                f"{largest}. Give candidates and pinned layers {MOST_BITS} weight bits "
                "or fewer, or take kernel_quantizer='lsq'."
            )
        return largest

    def rounded(self, bits: tuple[int, ...]) -> Rounded:
        """Nearest levels of clipped values [branches, rows, columns], signed."""
        return _rounded(bits)

    def nearest(self, bits: int) -> Nearest:
        """Nearest levels for one bit-width in NumPy: a function `(scaled, out)`."""
        limit, table = self.largest_code(bits), _table(bits)

        def look_up(scaled: np.ndarray, out: np.ndarray) -> np.ndarray:
            halves = np.ceil(2 * np.minimum(np.abs(scaled), limit)).astype("int16")
            return np.copysign(table[halves], scaled, out=out)

        return look_up


apot = Apot()


@functools.cache
def levels(bits: int) -> np.ndarray:
    """Magnitudes of the codes, ascending: whole numbers from 0, [2^(bits-1)].

    A level is a sum of one element from each set. One bit is the sign; of the other
    `bits - 1`, each two select from a set of 0 and three powers of two, and a bit that
    is left over from a set of 0 and one power. The powers are distinct. They are given
    to the sets from the largest down: two to each set of three in turn, one to the set
    of one, then the third to each set of three.
    """
    sets, odd = divmod(bits - 1, 2)
    power = 2 ** (3 * sets + odd)
    dealt: list[list[int]] = [[0] for _ in range(sets + odd)]
    for place in [*range(sets)] * 2 + [sets] * odd + [*range(sets)]:
        power //= 2
        dealt[place].append(power)
    return np.unique(functools.reduce(np.add.outer, map(np.array, dealt)))


@functools.cache
def _table(bits: int) -> np.ndarray:
    """Nearest level of each half-open interval of length 1/2, as a look-up table.

    The middle between two levels is a multiple of 1/2, so all values of an interval
    have the same nearest level.
    """
    known = levels(bits)
    values = np.arange(2 * known[-1] + 1) / 2 - 0.25
    return known[np.argmin(np.abs(np.subtract.outer(values, known)), 1)].astype("f")


@functools.cache
def _rounded(bits: tuple[int, ...]) -> Rounded:
    """Rounds by a sum of comparisons with thresholds, which XLA fuses into one loop."""
    thresholds, rises = _stairs(bits)

    def codes_of(clipped: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(clipped, tf.float32) if clipped.dtype.size < 4 else clipped
        size, total = tf.abs(wide), tf.zeros_like(wide)
        for threshold, rise in zip(thresholds, rises, strict=True):
            above = tf.cast(size > tf.constant(threshold, wide.dtype), wide.dtype)
            total += above * tf.constant(rise, wide.dtype)
        return tf.cast(tf.sign(wide) * total, clipped.dtype)

    return codes_of


def _stairs(bits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Middles between levels, and differences of levels, [stairs, branches, 1, 1].

    Branches with fewer levels than the widest are filled up with zeros.
    """
    stairs = 2 ** (max(bits) - 1) - 1
    thresholds, rises = np.zeros((2, stairs, len(bits), 1, 1))
    for branch, width in enumerate(bits):
        known = levels(width)
        thresholds[: len(known) - 1, branch, 0, 0] = (known[1:] + known[:-1]) / 2
        rises[: len(known) - 1, branch, 0, 0] = np.diff(known)
    return thresholds, rises
