"""Bit-widths: which are valid, and which each layer may have."""

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gmpq_tf.spelling import suggest

MIN_BITS = 2
MAX_BITS = 8
PINNED_BITS = (8, 8)
LAYER_KEYS = ("weight_bits", "activation_bits")
# Bits that a layer is pinned at: (weight bits, activation bits); None: not pinned.
Pin = tuple[int | None, int | None]


class PolicyError(ValueError):
    """A policy, or a policy file, is invalid or of another model."""


class ReadOnlyDict(dict[str, Any]):
    """A dict that cannot be changed, for values that are hashed or recorded.

    It equals a dict of the same items, and can be copied, pickled and written as JSON
    like one; `dict(it)` gives a copy that can be changed.
    """

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "The layers and options of a policy or a search space must stay as they "
            "were made. Received: a change of the mapping. Make another one, such as "
            "BitwidthPolicy(policy.model, {**policy.layers, name: (4, 4)})."
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def check_bits(name: str, bits: Any) -> int:
    """Returns a bit-width as an int, if it is valid.

    Args:
        name: what the bit-width is of, for the message.
        bits: a whole number, 2 to 8.

    Returns:
        `bits` as a Python int.

    Raises:
        PolicyError: `bits` is not a whole number from 2 to 8.
    """
    whole = isinstance(bits, numbers.Integral) and not isinstance(bits, bool)
    if not whole or not MIN_BITS <= bits <= MAX_BITS:
        raise PolicyError(
            f"A bit-width must be a whole number from {MIN_BITS} to {MAX_BITS}. "
            f"Received: {name}={bits!r:.80}. Use one of 2, 3, 4, 5, 6, 7, 8."
        )
    return int(bits)


class LayerPair(NamedTuple):
    """A pair of values for a layer's weights and its activations, in this order.

    Args:
        weights: e.g. probabilities [branches] of the kernel's bit-widths, or their
            mean.
        activations: the same for the layer's input.
    """

    weights: Any
    activations: Any


@dataclass(frozen=True)
class LayerBits:
    """The bit-widths of one layer.

    Args:
        weight_bits: bits of each kernel weight, 2 to 8.
        activation_bits: bits of each input activation, 2 to 8.

    Raises:
        PolicyError: a bit-width is not a whole number from 2 to 8.
    """

    weight_bits: int
    activation_bits: int

    def __post_init__(self) -> None:
        for name in LAYER_KEYS:
            object.__setattr__(self, name, check_bits(name, getattr(self, name)))


def check_layer_bits(name: Any, bits: Any) -> LayerBits:
    """Returns the bits of one layer, checked.

    Args:
        name: the layer's name.
        bits: `LayerBits` or `(weight_bits, activation_bits)`.

    Returns:
        The bits.

    Raises:
        PolicyError: the name is not text, or the bits are not a pair of 2 to 8.
    """
    if not isinstance(name, str) or not name:
        raise PolicyError(
            "A layer name must be text. "
            f"Received: name={name!r}. Use the name of the Keras layer."
        )
    if isinstance(bits, LayerBits):
        return bits
    if not isinstance(bits, (tuple, list)) or len(bits) != 2:
        raise PolicyError(
            "A layer's bits must be a pair of whole numbers. "
            f"Received: {name}={bits!r}. Pass (weight_bits, activation_bits)."
        )
    weight_bits = check_bits(f"{name}.weight_bits", bits[0])
    return LayerBits(weight_bits, check_bits(f"{name}.activation_bits", bits[1]))


def check_candidates(name: str, bits: Any) -> tuple[int, ...]:
    """Returns candidate bit-widths in ascending order, checked.

    Args:
        name: what they are candidates of, for the message.
        bits: at least one bit-width, each 2 to 8, none twice.

    Returns:
        The same, sorted.

    Raises:
        PolicyError: there is no candidate, one twice, or one outside 2 to 8.
    """
    if isinstance(bits, str) or not isinstance(bits, Iterable):
        raise PolicyError(
            "Candidate bits must be a sequence of whole numbers. "
            f"Received: {name}={bits!r}. Pass for example (2, 3, 4)."
        )
    checked = [check_bits(name, each) for each in bits]
    if not checked or len(set(checked)) < len(checked):
        raise PolicyError(
            "Candidate bits must be at least one and none twice. "
            f"Received: {name}={bits!r}. Pass for example (2, 3, 4)."
        )
    return tuple(sorted(checked))


def check_pin(name: str, pin: Any) -> Pin:
    """Returns the bits that a layer is pinned at, checked.

    Args:
        name: name of the layer, for the message.
        pin: `LayerBits` or (weight_bits, activation_bits), one of which may be None:
            that side is searched.

    Returns:
        (weight_bits, activation_bits), one of which may be None.

    Raises:
        PolicyError: it is not such a pair, or both sides are None.
    """
    if isinstance(pin, LayerBits):
        return pin.weight_bits, pin.activation_bits
    pair = isinstance(pin, (tuple, list)) and len(pin) == 2
    if not pair or (pin[0] is None and pin[1] is None):
        raise PolicyError(
            "A pinned layer must have a pair of whole numbers, one of which may be "
            f"None. Received: pinned[{name!r}]={pin!r}. Pass (weight_bits, "
            "activation_bits), or (None, 8) to search the weights alone."
        )
    weight_bits, activation_bits = (
        None if bits is None else check_bits(f"pinned.{name}.{key}", bits)
        for key, bits in zip(LAYER_KEYS, pin, strict=True)
    )
    return weight_bits, activation_bits


def check_pinned(
    names: Iterable[str], pinned: Mapping[str, Pin] | None
) -> dict[str, Pin]:
    """Returns the pinned layers of a model, checked against its layer names.

    Args:
        names: the searchable layers, in graph order.
        pinned: layer name -> (weight_bits, activation_bits), {} for none; None is the
            first and the last layer at (8, 8). One of a pair may be None: that side is
            not pinned.

    Returns:
        Layer name -> (weight_bits, activation_bits).

    Raises:
        PolicyError: a pinned layer is not among the names, or has no such pair.
    """
    names = list(names)
    if pinned is None:
        return dict.fromkeys(names[:1] + names[-1:], PINNED_BITS)
    for name in pinned:
        if name not in names:
            raise PolicyError(
                "A pinned layer must be a searchable layer of the model. "
                f"Received: pinned={name!r}. {suggest(name, names)}"
            )
    return {name: check_pin(name, pin) for name, pin in pinned.items()}


def default_pins(
    ends: Iterable[str], pinned: Mapping[str, Pin] | None
) -> Mapping[str, Pin]:
    """Returns the pinned layers of a model: those given, or its ends at (8, 8).

    Args:
        ends: names of the layers at the two ends of the model.
        pinned: as for `check_pinned`, or None.
    """
    return dict.fromkeys(ends, PINNED_BITS) if pinned is None else pinned


def uniform_pins(
    ends: Iterable[str], pinned: Mapping[str, Pin] | None
) -> Mapping[str, Pin]:
    """Returns the layers that have bits of their own in a uniform policy.

    Args:
        ends: names of the layers at the two ends of the model.
        pinned: as for `check_pinned`. A side that is None gets 8 bits in the layers of
            `ends`, and stays None (the uniform bits) in others.

    Returns:
        Layer name -> (weight_bits, activation_bits), one of which may be None.

    Raises:
        PolicyError: the bits of a pinned layer are not such a pair.
    """
    ends, checked = set(ends), {}
    for name, pin in default_pins(ends, pinned).items():
        own: Pin = PINNED_BITS if name in ends else (None, None)
        pairs = zip(check_pin(name, pin), own, strict=True)
        weights, activations = (side if bits is None else bits for bits, side in pairs)
        checked[name] = (weights, activations)
    return checked


def uniform_bits(
    names: Iterable[str],
    weight_bits: int,
    activation_bits: int,
    pinned: Mapping[str, Pin] | None = None,
) -> dict[str, tuple[int, int]]:
    """Returns the bits of each layer in a uniform policy with pinned layers.

    Args:
        names: the searchable layers, in graph order.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.
        pinned: as for `check_pinned`. A side that is None has 8 bits in the first and
            the last layer, which is their default.

    Returns:
        Layer name -> (weight_bits, activation_bits).

    Raises:
        PolicyError: as for `check_pinned`.
    """
    names = list(names)
    bits = dict.fromkeys(names, (weight_bits, activation_bits))
    ends = dict.fromkeys(names[:1] + names[-1:], PINNED_BITS)
    for name, (weights, activations) in check_pinned(names, pinned).items():
        own = ends.get(name, bits[name])
        bits[name] = (
            own[0] if weights is None else weights,
            own[1] if activations is None else activations,
        )
    return bits


def layer_candidates(
    names: Iterable[str],
    weight_bits: tuple[int, ...],
    activation_bits: tuple[int, ...],
    pinned: Mapping[str, Pin] | None = None,
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns the candidate bit-widths of each layer.

    Args:
        names: the searchable layers, in graph order.
        weight_bits: candidates of every kernel, each 2 to 8, none twice.
        activation_bits: candidates of every layer's input, each 2 to 8, none twice.
        pinned: as for `check_pinned`; a pinned side has one candidate.

    Returns:
        Layer name -> (candidate weight bits, candidate activation bits), ascending.

    Raises:
        PolicyError: a candidate or a pinned layer cannot be used.
    """
    names = list(names)
    free = (
        check_candidates("weight_bits", weight_bits),
        check_candidates("activation_bits", activation_bits),
    )
    candidates = dict.fromkeys(names, free)
    for name, (weights, activations) in check_pinned(names, pinned).items():
        candidates[name] = (
            free[0] if weights is None else (weights,),
            free[1] if activations is None else (activations,),
        )
    return candidates
