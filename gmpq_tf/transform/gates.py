"""Rewrites swish and squeeze-excite as operations with integer kernels in TFLite.

`silu(x) = x sigmoid(x)` and `hard_silu(x) = x hard_sigmoid(x)`: one lookup or one
convolution makes the gate, one multiplication applies it, and both factors and the
product are on 8-bit grids.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from gmpq_tf.graph import (
    Call,
    Graph,
    Ref,
    activation_name,
    free_name,
    unary_call,
)
from gmpq_tf.layer_kinds import Role, function_of

SIXTH = 1 / 6


def curve(call: Call) -> str | None:
    """Name of the activation function that a call computes; None for other calls.

    The call may be a layer or a Keras operation.
    """
    if call.role is not Role.CURVE:
        return None
    return call.row.function or activation_name(call.layer)


def is_gate(call: Call) -> bool:
    """Whether a call is a sigmoid or a hard sigmoid."""
    return function_of(curve(call)).gate


def is_lookup(call: Call) -> bool:
    """Whether a table over 256 codes computes a call, as for LeakyReLU and PReLU."""
    return call.role is Role.LOOKUP or function_of(curve(call)).lookup


def split_gates(graph: Graph) -> Graph:
    """Writes swishes as products, and spelled-out hard sigmoids as one call.

    `x -> silu` becomes `<name>_gate = sigmoid(x)` and `<name> = x * <name>_gate`.
    """
    graph = merge_hard_sigmoids(graph)
    split = replace(
        graph, calls=[], shapes=list(graph.shapes), dtypes=list(graph.dtypes)
    )
    taken = {call.name for call in graph.calls}
    layers: dict[int, tuple[Any, Any]] = {}
    for call in graph.calls:
        gate = function_of(curve(call)).gated_by
        if gate is None:
            split.calls.append(call)
            continue
        if id(call.layer) not in layers:
            name = free_name(f"{call.name}_gate", taken)
            taken.add(name)
            product = keras.layers.Multiply(name=call.name)
            layers[id(call.layer)] = keras.layers.Activation(gate, name=name), product
        split.calls.extend(_product(call, split, *layers[id(call.layer)]))
    return split


def _product(call: Call, graph: Graph, gate: Any, product: Any) -> list[Call]:
    """The gate's call and the multiplication's."""
    source, target = call.inputs[0], call.outputs[0]
    middle = graph.new_tensor(graph.shapes[target], graph.dtypes[target])
    args = ([Ref(source), Ref(middle)],)
    return [
        unary_call(gate, gate.name, source, middle),
        Call(product, call.name, args, {}, (source, middle), (target,)),
    ]


def merge_hard_sigmoids(graph: Graph) -> Graph:
    """Turns `relu6(x + 3) / 6`, as in MobileNetV3, into one `hard_sigmoid(x)`."""
    producers, consumers = graph.producers(), graph.consumers()
    gone: set[int] = set()
    merged: dict[int, Call] = {}
    for call in graph.calls:
        chain = _hard_sigmoid(graph, call, producers, consumers)
        if chain is not None:
            gone.update(id(before) for before in chain)
            layer = keras.layers.Activation("hard_sigmoid", name=call.name)
            source = chain[0].inputs[0]
            merged[id(call)] = unary_call(layer, call.name, source, call.outputs[0])
    kept = [call for call in graph.calls if id(call) not in gone]
    return replace(graph, calls=[merged.get(id(call), call) for call in kept])


def _hard_sigmoid(
    graph: Graph, call: Call, producers: dict, consumers: dict
) -> tuple[Call, Call] | None:
    """The addition and the ReLU6 of a hard sigmoid that ends at `call`; else None."""
    divides = operand(call, "Divide", "TrueDivide") == 6
    factor = operand(call, "Multiply")
    if not divides and (factor is None or abs(factor - SIXTH) > 1e-7):
        return None
    relu = producers.get(call.inputs[0])
    add = producers.get(relu.inputs[0]) if relu is not None else None
    if relu is None or add is None or operand(add, "Add") != 3:
        return None
    alone = all(
        len(consumers[c.outputs[0]]) == 1 and c.outputs[0] not in graph.outputs
        for c in (add, relu)
    )
    return (add, relu) if alone and _is_relu6(relu) else None


def _is_relu6(call: Call) -> bool:
    return curve(call) == "relu6"


def operand(call: Call, *kinds: str) -> float | None:
    """The constant of an operation of one tensor and one constant.

    Args:
        call: such as `x + 3`, `x * 2` or `x / 6`.
        *kinds: kinds of calls that are accepted, such as "Add" or "Divide".

    Returns:
        The constant; None for other kinds, for `6 / x` and the like, for two tensors
        and for constants of several numbers.
    """
    if call.kind not in kinds or len(call.inputs) != 1 or len(call.args) != 2:
        return None
    constants = [arg for arg in call.args if not isinstance(arg, Ref)]
    commutes = call.kind in ("Add", "Multiply")
    if len(constants) != 1 or not (commutes or isinstance(call.args[0], Ref)):
        return None
    value = np.asarray(constants[0])
    return float(value) if value.size == 1 else None
