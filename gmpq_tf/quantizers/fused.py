"""Compilation by XLA, and chunked sums, for the weighted sums of quantizers."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

# XLA fuses the forward and the backward pass into few loops each. Compiling takes about
# 0.2 s a shape, so short runs on small tensors are quicker with GMPQ_XLA_QUANTIZERS=0.
# `xla_quantizers` overrides this default.
USE_XLA = os.environ.get("GMPQ_XLA_QUANTIZERS", "1") != "0"
_chosen: ContextVar[bool | None] = ContextVar("xla_quantizers", default=None)
CHUNK = 4096  # elements: some twenty buffers of this size fit a processor's L2 cache
FEW = 4 * CHUNK  # elements up to which a plain sum is as fast, and compiles sooner

Terms = Callable[..., Sequence[tf.Tensor]]


@contextmanager
def xla_quantizers(enabled: bool) -> Iterator[None]:
    """Switches XLA on or off for quantizers that are traced inside the block.

    Args:
        enabled: whether to compile; overrides the environment variable
            `GMPQ_XLA_QUANTIZERS`.
    """
    token = _chosen.set(enabled)
    try:
        yield
    finally:
        _chosen.reset(token)


def uses_xla() -> bool:
    """Whether quantizers traced at this point are compiled by XLA."""
    chosen = _chosen.get()
    return USE_XLA if chosen is None else chosen


def compiled(
    function: Callable, any_size: bool = False, whole: bool = True
) -> Callable:
    """`function` as one XLA computation, or as a plain graph where XLA is off.

    Args:
        function: takes and returns tensors of any shapes.
        any_size: trace it only once for tensors of all sizes, which takes a fraction of
            the time (XLA still compiles it for each shape). It may then read sizes by
            `tf.shape` alone, and the static shapes of its results are not known.
        whole: False: a plain graph in any case, parts of which are compiled.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return made(uses_xla(), _of_any_size(args) if any_size else None)(*args)

    @functools.cache
    def made(xla: bool, signature: Any) -> Callable:
        return tf.function(
            function, signature, jit_compile=(whole and xla) or None, autograph=False
        )

    return call


def _of_any_size(tensors: Sequence[tf.Tensor]) -> tuple[tf.TensorSpec, ...]:
    """A signature for all tensors of the ranks and types of these."""
    return tuple(
        tf.TensorSpec(tf.TensorShape(None).with_rank(t.shape.rank), t.dtype)
        for t in tensors
    )


def chunk_rows(array: tf.Tensor, channels: int = 1) -> int:
    """Rows of the chunks in which `sums` should walk such an array; 0: in none.

    Args:
        array: any shape, channels last; the batch size may be unknown.
        channels: as for `sums`.
    """
    few = channels > 1 and (array.shape.num_elements() or math.inf) <= FEW
    if few or not uses_xla():
        return 0
    # The batch size may be known only when XLA compiles; a chunk fits into one image.
    known = math.prod(d for d in array.shape if d is not None)
    return _rows_of_chunk(known // channels, max(1, min(CHUNK, known) // channels))


def sums(
    terms: Terms,
    parameters: Any,
    arrays: Sequence[tf.Tensor],
    channels: int = 1,
    rows: int = 0,
) -> list[tf.Tensor]:
    """Sums each tensor that `terms(parameters, *arrays)` returns over its rows.

    In chunks of `rows` the terms are added to buffers: under XLA no term is ever stored
    whole, and the additions are vectorized, which a long sum is not on CPUs (2.6 times
    faster for 7 branches). Only that loop is compiled by XLA: to compile what remains
    to be added up would take as long again.

    Args:
        terms: elementwise function of tensors [rows, channels], to tensors
            [..., rows, channels].
        parameters: its other tensors, nested in lists; small, given to each chunk.
        arrays: tensors of one shape, channels last.
        channels: size of the arrays' last axes (as one), which are kept; 1 sums all.
        rows: what `chunk_rows` returned for the arrays; 0: sum them plainly.

    Returns:
        One tensor per term, [..., channels].
    """
    leaves = [*tf.nest.flatten(parameters), *arrays]

    def unpacked(values):  # type: ignore[no-untyped-def]
        split = len(values) - len(arrays)
        return tf.nest.pack_sequence_as(parameters, values[:split]), values[split:]

    def plain(*values):  # type: ignore[no-untyped-def]
        return _plain_sums(terms, *unpacked(values), channels)

    @compiled
    def chunked(*values):  # type: ignore[no-untyped-def]
        return _chunked_sums(terms, *unpacked(values), channels, rows)

    if not rows:
        return list(compiled(plain)(*leaves))

    # Differentiating the loop would make XLA keep the state of every step, so the
    # gradient is that of the plain sums.
    @tf.custom_gradient
    def call(*values):  # type: ignore[no-untyped-def]
        def gradient(*upstream):  # type: ignore[no-untyped-def]
            with tf.GradientTape() as tape:
                tape.watch(values)
                found = plain(*values)
            return tape.gradient(
                found, values, list(upstream), unconnected_gradients="zero"
            )

        buffers, tails = chunked(*values)
        added = zip(buffers, tails, strict=True)
        return [tf.reduce_sum(b, -2) + tail for b, tail in added], gradient

    return list(call(*leaves))


def _plain_sums(
    terms: Terms, parameters: Any, arrays: Sequence[tf.Tensor], channels: int
) -> list[tf.Tensor]:
    rows = [tf.reshape(a, [-1, channels]) for a in arrays]
    return [tf.reduce_sum(term, -2) for term in terms(parameters, *rows)]


def _rows_of_chunk(whole: int, most: int) -> int:
    """Rows of a chunk: the largest divisor of `whole` between `most / 2` and `most`.

    With a divisor nothing is left over, and the terms are compiled once instead of
    twice. Without one it is `most`.
    """
    near = range(most, most // 2, -1)
    return next((rows for rows in near if whole % rows == 0), most)


def _chunked_sums(
    terms: Terms,
    parameters: Any,
    arrays: Sequence[tf.Tensor],
    channels: int,
    rows: int,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Sums over all chunks [..., rows, channels], and of what is left over."""
    flat = [tf.reshape(a, [-1]) for a in arrays]
    size = rows * channels
    total = flat[0].shape[0] or tf.size(flat[0])
    count = total // size

    def chunk(start, length):  # type: ignore[no-untyped-def]
        parts = [tf.slice(a, [start], [length]) for a in flat]
        return terms(parameters, *[tf.reshape(p, [-1, channels]) for p in parts])

    def add(i, *buffers):  # type: ignore[no-untyped-def]
        found = chunk(i * size, size)
        return (i + 1, *(b + t for b, t in zip(buffers, found, strict=True)))

    rest = chunk(count * size, total - count * size)
    tail = [tf.reduce_sum(t, -2) for t in rest]
    buffers = [tf.zeros([*t.shape[:-2], rows, channels], t.dtype) for t in rest]
    _, *buffers = tf.while_loop(lambda i, *_: i < count, add, (0, *buffers))
    return buffers, tail
