"""The cost of a model under a policy, in closed form.

One MAC is one multiply-add. All numbers are raw counts: operations, bits, bytes.
"""

import math
from dataclasses import dataclass
from typing import Any

from gmpq_tf.budget import FULL_PRECISION_BITS, bit_ops
from gmpq_tf.float_layers import (
    FloatLayer,
    float_bit_ops,
    float_layers,
    uncounted,
    warn_uncounted,
)
from gmpq_tf.graph import (
    is_searchable,
    kernel_size,
    layer_macs,
    read_graph,
    searchable_layers,
    searchable_names,
)
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.space import SearchSpace

__all__ = [
    "FULL_PRECISION_BITS",
    "Cost",
    "LayerCost",
    "bit_ops",
    "bit_ops_range",
    "count_cost",
    "packed_bytes",
]


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer with a kernel.

    Args:
        name: the layer's name.
        macs: multiply-adds for one example, summed over all calls of the layer.
        params: number of weights of the kernel.
        input_elements: activations that it reads for one example, over all calls.
        weight_bits: bits of each kernel weight.
        activation_bits: bits of each input activation.
        bit_ops: macs * weight_bits * activation_bits.
        weight_bytes: bytes of the kernel at its bits, rounded up.
        activation_bytes: bytes of the activations that it reads at their bits, rounded
            up: ceil(activation_bits * input_elements / 8).
    """

    name: str
    macs: int
    params: int
    input_elements: int
    weight_bits: int
    activation_bits: int
    bit_ops: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Cost:
    """The cost of a model for one example.

    Args:
        macs: multiply-adds of the layers.
        params: number of all parameters of the model.
        bit_ops: sum of the layers' bit operations.
        weight_bytes: bytes of kernels at their bits and other parameters at 32 bits.
        activation_bytes: sum over what the layers read. A tensor that two layers read
            counts twice, each time at that layer's bits: this is memory traffic, not
            the memory that a runtime needs at once.
        layers: the searchable layers, in graph order.
        float_layers: layers with kernels that a policy does not cover, such as
            attention, in graph order, at 32 x 32 bits; they are part of every sum.
        uncounted: names of float layers whose multiply-adds are not known; only their
            parameters are counted.
    """

    macs: int
    params: int
    bit_ops: int
    weight_bytes: int
    activation_bytes: int
    layers: tuple[LayerCost, ...]
    float_layers: tuple[LayerCost, ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def other_params(self) -> int:
        """Number of parameters outside of kernels: biases, statistics."""
        counted = (*self.layers, *self.float_layers)
        return self.params - sum(layer.params for layer in counted)

    @property
    def other_bytes(self) -> int:
        """Bytes of the parameters outside of kernels, at 32 bits."""
        counted = (*self.layers, *self.float_layers)
        return self.weight_bytes - sum(layer.weight_bytes for layer in counted)


def packed_bytes(count: int, bits: int) -> int:
    """Returns the bytes of a packed tensor: ceil(bits * count / 8).

    Args:
        count: number of elements.
        bits: bits of each element.

    Returns:
        Whole bytes.
    """
    return -(-bits * count // 8)


def count_cost(model: Any, policy: BitwidthPolicy | None = None) -> Cost:
    """Computes the cost of a model under a policy.

    Args:
        model: a built functional Keras model.
        policy: bits of every searchable layer; None counts 32 x 32 bits.

    Returns:
        The cost of one example. A warning names layers that cannot be counted.

    Raises:
        PolicyError: the policy is for another model.
    """
    costs, in_float = _layer_costs(model, policy), float_layers(model)
    warn_uncounted(in_float)
    floats = tuple(_float_cost(layer) for layer in in_float)
    counted = (*costs, *floats)
    params = sum(math.prod(weight.shape) for weight in model.weights)
    other = params - sum(cost.params for cost in counted)
    stored = sum(cost.weight_bytes for cost in counted)
    return Cost(
        macs=sum(cost.macs for cost in counted),
        params=params,
        bit_ops=sum(cost.bit_ops for cost in counted),
        weight_bytes=stored + packed_bytes(other, FULL_PRECISION_BITS),
        activation_bytes=sum(cost.activation_bytes for cost in counted),
        layers=costs,
        float_layers=floats,
        uncounted=uncounted(in_float),
    )


def bit_ops_range(model: Any, space: SearchSpace) -> tuple[int, int]:
    """Returns the fewest and the most bit operations a space can reach.

    Args:
        model: a built functional Keras model.
        space: the candidates of its layers.

    Returns:
        (lowest, highest) bit operations of one example, with those of float layers.

    Raises:
        PolicyError: the space pins a layer that the model lacks.
    """
    macs, fixed = layer_macs(model), float_bit_ops(model)
    candidates = space.candidates(model).items()
    low = sum(bit_ops(macs[name], min(w), min(a)) for name, (w, a) in candidates)
    high = sum(bit_ops(macs[name], max(w), max(a)) for name, (w, a) in candidates)
    return low + fixed, high + fixed


def _layer_costs(model: Any, policy: BitwidthPolicy | None) -> tuple[LayerCost, ...]:
    names = searchable_names(model)
    if policy is None:
        bits = dict.fromkeys(names, (FULL_PRECISION_BITS, FULL_PRECISION_BITS))
    else:
        policy.check_model(model)
        bits = {n: (b.weight_bits, b.activation_bits) for n, b in policy.items()}
    macs, elements = layer_macs(model), _input_elements(model)
    layers = zip(names, searchable_layers(model), strict=True)
    return tuple(
        _layer_cost(name, macs[name], kernel_size(layer), elements[name], *bits[name])
        for name, layer in layers
    )


def _float_cost(layer: FloatLayer) -> LayerCost:
    bits = FULL_PRECISION_BITS, FULL_PRECISION_BITS
    elements = layer.input_elements
    return _layer_cost(layer.name, layer.macs or 0, layer.params, elements, *bits)


def _input_elements(model: Any) -> dict[str, int]:
    """Layer name -> number of activations it reads for one example, over its calls."""
    graph = read_graph(model)
    elements: dict[str, int] = {}
    for call in graph.calls:
        if is_searchable(call.layer):
            count = math.prod(graph.shapes[call.inputs[0]][1:])
            elements[call.name] = elements.get(call.name, 0) + count
    return elements


def _layer_cost(
    name: str,
    macs: int,
    params: int,
    input_elements: int,
    weight_bits: int,
    activation_bits: int,
) -> LayerCost:
    return LayerCost(
        name=name,
        macs=macs,
        params=params,
        input_elements=input_elements,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        bit_ops=bit_ops(macs, weight_bits, activation_bits),
        weight_bytes=packed_bytes(params, weight_bits),
        activation_bytes=packed_bytes(input_elements, activation_bits),
    )
