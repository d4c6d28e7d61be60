"""Calls that are computed together: a layer, its BatchNormalization, its activation.

Placement of quantizers, rounding of biases and all exports use the same answer: a file
is exact only if they agree on what folds into what.
"""

from __future__ import annotations

from dataclasses import dataclass

from gmpq_tf.graph import Call, Graph, is_plain_relu, relu_cap
from gmpq_tf.layer_kinds import Role, function_of
from gmpq_tf.transform.gates import curve


@dataclass(frozen=True, eq=False)
class Unit:
    """Calls that one integer kernel computes, without storing tensors in between.

    Args:
        call: the call that the kernel computes.
        batch_norm: the BatchNormalization that folds into it.
        activation: the ReLU after both, in a call of its own.
    """

    call: Call
    batch_norm: Call | None = None
    activation: Call | None = None

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls in the order in which the model makes them."""
        found = (self.call, self.batch_norm, self.activation)
        return tuple(call for call in found if call is not None)

    @property
    def result(self) -> int:
        """Number of the tensor that the last call writes."""
        return self.calls[-1].outputs[0]


def units(graph: Graph) -> list[Unit]:
    """Partitions a graph: each call is in exactly one unit.

    A call joins the unit of the call before it if it is the only reader of its result,
    the model does not return that result, and the kernel can compute both: see
    `is_fused`. So two calls with a quantizer between them are in different units.

    Args:
        graph: graph of a float model or of a student, after `split_activations`.

    Returns:
        The units, in the order of their first calls.
    """
    consumers = graph.consumers()
    inside: set[int] = set()
    found = []
    for call in graph.calls:
        if id(call) in inside:
            continue
        unit = _unit(graph, call, consumers)
        inside.update(id(member) for member in unit.calls)
        found.append(unit)
    return found


def unit_of(graph: Graph) -> dict[int, Unit]:
    """Id of each call of a graph -> its unit."""
    return {id(call): unit for unit in units(graph) for call in unit.calls}


def _unit(graph: Graph, call: Call, consumers: dict[int, list[Call]]) -> Unit:
    unit = Unit(call)
    while unit.result not in graph.outputs and len(consumers[unit.result]) == 1:
        reader = consumers[unit.result][0]
        if not is_fused(unit.calls[-1], reader):
            break
        if reader.role is Role.NORM:
            unit = Unit(call, reader)
        else:
            unit = Unit(call, unit.batch_norm, reader)
    return unit


def is_fused(call: Call, reader: Call) -> bool:
    """Whether the kernel of `call` can compute its only reader too.

    BatchNormalization folds into the convolution before it; ReLU and ReLU6 into a
    convolution, an addition of two tensors, or a BatchNormalization (which, without a
    convolution before it, is exported as a depthwise convolution). What the export
    refuses, such as a BatchNormalization along rows, folds into nothing.
    """
    if reader.row.refuses(reader.layer, len(reader.inputs)) is not None:
        return False
    if call.role is Role.KERNEL and call.activation != "linear":
        return False
    if call.role is Role.SUM and len(call.inputs) != 2:
        return False
    if reader.role is Role.CURVE and not is_fusable_relu(reader):
        return False
    return call.role in reader.row.fuses_into


def is_fusable_relu(call: Call) -> bool:
    """Whether a call is a ReLU, with or without a largest value.

    It may be a layer, an `Activation` or a Keras operation.
    """
    if call.kind == "ReLU":
        cap = relu_cap(call.layer)
        return is_plain_relu(call.layer) and (cap is None or cap > 0)
    return call.role is Role.CURVE and function_of(curve(call)).fused


def cap_of(call: Call) -> float | None:
    """The largest value that a fusable ReLU lets through; None: it has none."""
    if call.kind == "ReLU":
        return relu_cap(call.layer)
    return 6.0 if curve(call) == "relu6" else None
