"""The search space: candidate bit-widths of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmpq_tf.bits import (
    Pin,
    PolicyError,
    ReadOnlyDict,
    check_candidates,
    check_pin,
    default_pins,
    layer_candidates,
)
from gmpq_tf.ends import end_names
from gmpq_tf.graph import searchable_names
from gmpq_tf.policy import BitwidthPolicy

Candidates = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class SearchSpace:
    """The bit-widths a search chooses from.

    Args:
        weight_bits: candidates of every kernel, each 2 to 8, none twice; kept sorted.
        activation_bits: candidates of every layer's input, each 2 to 8, none twice.
        pinned: layer name -> (weight_bits, activation_bits) of layers that are not
            searched; None pins the first searchable layer and those whose results are
            outputs at (8, 8), {} pins none. One side may be None: with conv1: (None, 8)
            the weights of conv1 are searched.

    Raises:
        PolicyError: there is no candidate, one twice, or one outside 2 to 8.
    """

    weight_bits: tuple[int, ...] = (2, 3, 4)
    activation_bits: tuple[int, ...] = (2, 3, 4)
    pinned: Mapping[str, Pin] | None = None

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            bits = check_candidates(name, getattr(self, name))
            object.__setattr__(self, name, bits)
        object.__setattr__(self, "pinned", _checked_pinned(self.pinned))

    def __hash__(self) -> int:
        pinned = None if self.pinned is None else frozenset(self.pinned.items())
        return hash((self.weight_bits, self.activation_bits, pinned))

    def candidates(self, model_or_names: Any) -> Candidates:
        """Returns the candidate bit-widths of each searchable layer.

        Args:
            model_or_names: a built functional Keras model, or the names of its
                searchable layers in graph order; then the ends are first and last name.

        Returns:
            Layer name -> (candidate weight bits, candidate activation bits), ascending,
            in graph order; a pinned side has one candidate.

        Raises:
            PolicyError: a pinned layer is not in the model.
        """
        if hasattr(model_or_names, "layers"):
            names = searchable_names(model_or_names)
            ends = end_names(model_or_names)
        else:
            names = list(model_or_names)
            ends = [*names[:1], *names[-1:]]
        pins = default_pins(ends, self.pinned)
        return layer_candidates(names, self.weight_bits, self.activation_bits, pins)

    def to_config(self) -> dict[str, Any]:
        """Returns the space as plain JSON values, for `from_config`."""
        pinned = self.pinned
        return {
            "weight_bits": list(self.weight_bits),
            "activation_bits": list(self.activation_bits),
            "pinned": pinned and {name: list(bits) for name, bits in pinned.items()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SearchSpace":
        """Returns the space that `to_config` described.

        Args:
            config: the keys `weight_bits`, `activation_bits`, `pinned`.

        Returns:
            An equal space.
        """
        return cls(**config)


def _checked_pinned(pinned: Any) -> Mapping[str, Pin] | None:
    if pinned is None:
        return None
    if not isinstance(pinned, Mapping):
        raise PolicyError(
            "Pinned layers must be a mapping or None. "
            f"Received: pinned={pinned!r}. "
            "Pass {name: (weight_bits, activation_bits)}."
        )
    return ReadOnlyDict({n: check_pin(n, pin) for n, pin in pinned.items()})


def random_policy(
    model: Any,
    space: SearchSpace,
    budget: Any,
    seed: int,
    storage: str | None = None,
    latency_table: str | None = None,
    kernel_quantizer: str | None = None,
    class_names: Sequence[str] = (),
) -> BitwidthPolicy:
    """Draws a policy of a space at random: the baseline that any search must beat.

    Args:
        model: a built functional Keras model.
        space: candidate bit-widths of its layers.
        budget: bit operations: up to 1 a fraction of full precision, above 1 a count;
            or another form, see `gmpq_tf.budget`.
        seed: seed of the draw.
        storage: as in `TableOptions`.
        latency_table: as in `TableOptions`.
        kernel_quantizer: as in `TableOptions`.
        class_names: as in `TableOptions`.

    Returns:
        A policy that costs no more than the budget.

    Raises:
        BudgetError: no policy of the space is that cheap.
    """
    number = isinstance(budget, (int, float))
    return BitwidthPolicy.random(
        model,
        budget if number else None,
        seed,
        space.weight_bits,
        space.activation_bits,
        space.pinned,
        None if number else budget,
        storage,
        latency_table,
        kernel_quantizer,
        class_names,
    )
