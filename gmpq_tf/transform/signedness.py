"""Which tensors of a graph can never be negative."""

from __future__ import annotations

import keras
import numpy as np

from gmpq_tf.graph import Call, Graph, is_described
from gmpq_tf.layer_kinds import function_of


def nonnegative_tensors(graph: Graph) -> set[int]:
    """Numbers of the tensors that are non-negative for every input.

    These are results of ReLU, ReLU6, softmax and the like, and of calls that keep the
    sign of such tensors: pools, sums, concatenations, reshapes, zero padding.
    """
    known: set[int] = set()
    for call in graph.calls:
        if _is_nonnegative(call, known):
            known.update(call.outputs)
    return known


def _is_nonnegative(call: Call, known: set[int]) -> bool:
    if not is_described(call):
        return False  # a user's own layer may do anything
    row = call.row
    # A user's own layer may go on computing after what it calls its activation.
    ends = "." not in call.kind and function_of(call.activation).nonnegative
    if ends or row.nonnegative(call.layer):
        return True
    if not row.keeps_sign(call.layer) or _has_negative_constant(call):
        return False
    return all(i in known for i in call.inputs)


def _has_negative_constant(call: Call) -> bool:
    """Whether a constant among the arguments is negative, as in `relu(x) * -1`."""
    numbers = [
        value
        for value in keras.tree.flatten((call.args, call.kwargs))
        if isinstance(value, (int, float)) or hasattr(value, "__array__")
    ]
    return any(np.any(np.asarray(value) < 0) for value in numbers)
