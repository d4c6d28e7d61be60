"""What a model costs under a policy, in closed form.

One MAC is one multiply-add. Everything is a raw count: operations, bits, bytes.
"""

import math
from dataclasses import dataclass
from typing import Any

from gmpq_tf.graph import kernel_size, layer_macs, searchable_layers, searchable_names
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.space import SearchSpace

FULL_PRECISION_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """What one searchable layer costs.

    Args:
        name: the layer's name.
        macs: multiply-adds for one example, over every place the layer is called.
        params: weights of the kernel.
        weight_bits: bits of each of them.
        activation_bits: bits of each input activation.
        bit_ops: macs * weight_bits * activation_bits.
        weight_bytes: bytes of the kernel at its bits, rounded up.
    """

    name: str
    macs: int
    params: int
    weight_bits: int
    activation_bits: int
    bit_ops: int
    weight_bytes: int


@dataclass(frozen=True)
class Cost:
    """What a model costs for one example.

    Args:
        macs: multiply-adds of the searchable layers.
        params: all parameters of the model.
        bit_ops: sum of the layers' bit operations.
        weight_bytes: kernels at their bits, every other parameter at 32 bits.
        layers: the searchable layers, in graph order.
    """

    macs: int
    params: int
    bit_ops: int
    weight_bytes: int
    layers: tuple[LayerCost, ...]


def bit_ops(macs: Any, weight_bits: Any, activation_bits: Any) -> Any:
    """Returns bit operations: macs * weight_bits * activation_bits (eq. 7).

    Args:
        macs: multiply-adds; a number, an array or a tensor, like the bits.
        weight_bits: bits of the weights, or their expectation.
        activation_bits: bits of the activations, or their expectation.

    Returns:
        The product, of the type the arguments have.
    """
    return macs * weight_bits * activation_bits


def weight_bytes(params: int, bits: int) -> int:
    """Returns the bytes of a packed tensor: ceil(bits * params / 8).

    Args:
        params: number of weights in the tensor.
        bits: bits of each.

    Returns:
        Whole bytes.
    """
    return -(-bits * params // 8)


def count_cost(model: Any, policy: BitwidthPolicy | None = None) -> Cost:
    """Counts what a model costs under a policy.

    Args:
        model: a built functional Keras model.
        policy: bits of every searchable layer; None counts 32 x 32 bits.

    Returns:
        The cost of one example.

    Raises:
        PolicyError: the policy is for another model.
    """
    costs = _layer_costs(model, policy)
    params = sum(math.prod(weight.shape) for weight in model.weights)
    other = params - sum(cost.params for cost in costs)
    stored = sum(cost.weight_bytes for cost in costs)
    return Cost(
        macs=sum(cost.macs for cost in costs),
        params=params,
        bit_ops=sum(cost.bit_ops for cost in costs),
        weight_bytes=stored + weight_bytes(other, FULL_PRECISION_BITS),
        layers=costs,
    )


def bit_ops_range(model: Any, space: SearchSpace) -> tuple[int, int]:
    """Returns the fewest and the most bit operations a space can reach.

    Args:
        model: a built functional Keras model.
        space: the candidates of its layers.

    Returns:
        (lowest, highest) bit operations of one example.

    Raises:
        PolicyError: the space pins a layer that the model lacks.
    """
    macs = layer_macs(model)
    candidates = space.candidates(model).items()
    low = sum(bit_ops(macs[name], min(w), min(a)) for name, (w, a) in candidates)
    high = sum(bit_ops(macs[name], max(w), max(a)) for name, (w, a) in candidates)
    return low, high


def _layer_costs(model: Any, policy: BitwidthPolicy | None) -> tuple[LayerCost, ...]:
    names = searchable_names(model)
    if policy is None:
        bits = dict.fromkeys(names, (FULL_PRECISION_BITS, FULL_PRECISION_BITS))
    else:
        policy.check(names)
        bits = {n: (b.weight_bits, b.activation_bits) for n, b in policy.items()}
    macs = layer_macs(model)
    layers = zip(names, searchable_layers(model), strict=True)
    return tuple(
        _layer_cost(name, macs[name], kernel_size(layer), *bits[name])
        for name, layer in layers
    )


def _layer_cost(
    name: str, macs: int, params: int, weight_bits: int, activation_bits: int
) -> LayerCost:
    return LayerCost(
        name=name,
        macs=macs,
        params=params,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        bit_ops=bit_ops(macs, weight_bits, activation_bits),
        weight_bytes=weight_bytes(params, weight_bits),
    )
