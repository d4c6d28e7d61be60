"""Which tensors of a graph can never be negative."""

from __future__ import annotations

import keras
import numpy as np

from gmpq_tf.graph import Call, Graph, is_stock

NONNEGATIVE_ACTIVATIONS = frozenset(
    "relu relu6 softmax sigmoid hard_sigmoid exponential softplus".split()
)
NONNEGATIVE_OPERATIONS = frozenset(
    "Relu Relu6 Softmax Sigmoid HardSigmoid Abs Exp Square".split()
)
# Operations whose output is non-negative whenever all their inputs are.
SIGN_KEEPING = frozenset(
    "Add Average Concatenate Maximum Minimum Multiply Dot MaxPooling2D "
    "AveragePooling2D GlobalAveragePooling2D GlobalMaxPooling2D Flatten Reshape "
    "Permute Dropout SpatialDropout2D ActivityRegularization Identity ZeroPadding2D "
    "Cropping2D UpSampling2D RepeatVector InputQuantizer Mean Max Sum".split()
)


def nonnegative_tensors(graph: Graph) -> set[int]:
    """Numbers of the tensors that are non-negative for every input.

    Follows ReLU, ReLU6, softmax and the like, and what keeps their sign: pools, sums,
    concatenations, reshapes, zero padding.
    """
    known: set[int] = set()
    for call in graph.calls:
        if _is_nonnegative(call, known):
            known.update(call.outputs)
    return known


def _is_nonnegative(call: Call, known: set[int]) -> bool:
    ours = type(call.layer).__module__.startswith("gmpq_tf.")
    if not ours and not is_stock(call.layer):
        return False  # somebody's own layer may do anything
    if call.kind == "ReLU":
        return not call.layer.negative_slope and call.layer.threshold >= 0
    if (
        call.activation in NONNEGATIVE_ACTIVATIONS
        or call.kind in NONNEGATIVE_OPERATIONS
    ):
        return True
    if call.kind not in SIGN_KEEPING or _has_negative_constant(call):
        return False
    if getattr(call.layer, "interpolation", "nearest") not in ("nearest", "bilinear"):
        return False  # bicubic and the like overshoot
    return all(i in known for i in call.inputs)


def _has_negative_constant(call: Call) -> bool:
    """Whether a constant among the arguments is negative, as in `relu(x) * -1`."""
    numbers = [
        value
        for value in keras.tree.flatten((call.args, call.kwargs))
        if isinstance(value, (int, float)) or hasattr(value, "__array__")
    ]
    return any(np.any(np.asarray(value) < 0) for value in numbers)
