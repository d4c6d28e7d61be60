"""A policy: the bits of each layer's weights and activations."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from gmpq_tf.align import align
from gmpq_tf.bits import (
    LAYER_KEYS,
    PINNED_BITS,
    LayerBits,
    Pin,
    PolicyError,
    ReadOnlyDict,
    check_candidates,
    check_layer_bits,
    check_pinned,
    default_pins,
    layer_candidates,
    uniform_bits,
    uniform_pins,
)
from gmpq_tf.budget import BudgetError, plain_budget
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.ends import end_names
from gmpq_tf.files import write_json
from gmpq_tf.graph import searchable_names
from gmpq_tf.limits import given_budget, limits_of, records
from gmpq_tf.policy.between import check_whole
from gmpq_tf.policy.channels import check_channels, check_counts
from gmpq_tf.policy.diff import (
    HEADER,
    PolicyDiff,
    RankCorrelation,
    diff_layers,
    rank_correlation,
)
from gmpq_tf.policy.draw import draw_bits
from gmpq_tf.policy.file import (
    CHANNELS,
    KEYS,
    check_object,
    number_of,
    read_policy_file,
)
from gmpq_tf.policy.renaming import check_adapts, check_same_names, new_names
from gmpq_tf.spelling import suggest

LONGEST_MESSAGE = 2000


@dataclass(frozen=True, repr=False)
class BitwidthPolicy(Mapping[str, LayerBits]):
    """The bit-widths of every searchable layer of a model, by layer name.

    It is a mapping: `policy["conv1"].weight_bits`, `for name in policy`,
    `policy.items()`. Two policies are equal if they give the same model the same bits,
    whatever made them. Only layer names decide where a policy can be used: one that was
    searched on 32-pixel images can be used for the same network at any image size,
    width or number of classes.

    Args:
        model: name of the model the policy is for.
        layers: layer name -> `LayerBits` or `(weight_bits, activation_bits)`.
        made_by: provenance of the policy (strategy, config, seed, versions), plain JSON
            values; for a pruned model also `channels`, layer name -> how many it has.

    Raises:
        PolicyError: a value has the wrong type, or a bit-width is not in 2 to 8.
    """

    model: str
    layers: Mapping[str, LayerBits | tuple[int, int]]
    made_by: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise PolicyError(
                "A policy must name its model. "
                f"Received: model={self.model!r:.80}. Pass the model's name."
            )
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        object.__setattr__(self, "made_by", _checked_provenance(self.made_by))
        check_counts(self.channels, self.layers)

    @property
    def channels(self) -> Mapping[str, int]:
        """Layer -> number of channels in a pruned model; {} for any other policy."""
        return self.made_by.get(CHANNELS, {})

    def __getitem__(self, name: str) -> LayerBits:
        if name not in self.layers:
            raise KeyError(
                f"The policy for {self.model!r} has no such layer. "
                f"Received: name={name!r}. {suggest(str(name), self.layers)}"
            )
        return cast(LayerBits, self.layers[name])  # converted on construction

    def __contains__(self, name: object) -> bool:
        return name in self.layers

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __hash__(self) -> int:
        return hash((self.model, frozenset(self.layers.items())))

    def __repr__(self) -> str:
        bits = ", ".join(
            f"{name}: W{layer.weight_bits}/A{layer.activation_bits}"
            for name, layer in self.items()
        )
        return f"BitwidthPolicy({self.model!r}, {{{bits}}})"

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Returns the bits of every layer as lines of aligned columns."""
        rows = [
            (n, str(b.weight_bits), str(b.activation_bits)) for n, b in self.items()
        ]
        return align(HEADER, rows)

    @classmethod
    def uniform(
        cls,
        model: Any,
        weight_bits: int,
        activation_bits: int,
        pinned: Mapping[str, Pin] | None = None,
    ) -> "BitwidthPolicy":
        """Returns a uniform policy: the same bits for every layer, except pinned ones.

        Args:
            model: a built functional Keras model.
            weight_bits: bits of every kernel, 2 to 8.
            activation_bits: bits of every layer's input, 2 to 8.
            pinned: layer name -> (weight_bits, activation_bits) of exceptions; None:
                the layers of `end_names` (the first, and those whose results are
                outputs) at (8, 8); {}: no exceptions. A side that is None has the
                uniform bits, in the layers of `end_names` 8.

        Returns:
            The policy of `model`, its layers in graph order.

        Raises:
            PolicyError: a bit-width is not in 2 to 8, or a pinned layer is not in the
                model.
        """
        names = searchable_names(model)
        pins = uniform_pins(end_names(model), pinned)
        layers = uniform_bits(names, weight_bits, activation_bits, pins)
        config = {"weight_bits": weight_bits, "activation_bits": activation_bits}
        return cls(model.name, layers, {"strategy": "uniform", "config": config})

    @classmethod
    def random(
        cls,
        model: Any,
        bit_ops_budget: float | None = None,
        seed: int = 0,
        weight_bits: tuple[int, ...] = (2, 3, 4),
        activation_bits: tuple[int, ...] = (2, 3, 4),
        pinned: Mapping[str, Pin] | None = None,
        budget: Any = None,
        storage: str | None = None,
        latency_table: str | None = None,
        kernel_quantizer: str | None = None,
        class_names: Sequence[str] = (),
    ) -> "BitwidthPolicy":
        """Draws a random policy that spends a budget: the baseline for any search.

        Args:
            model: a built functional Keras model.
            bit_ops_budget: bit operations of one example, up to 1 a fraction of full
                precision, above 1 a count; None: `budget` is given. The policy costs at
                most 3 % less, if the candidates allow it.
            seed: seed of the draw; the same seed draws the same policy.
            weight_bits: candidates of every kernel, each 2 to 8, none twice.
            activation_bits: candidates of every layer's input, each 2 to 8, none twice.
            pinned: layer name -> (weight_bits, activation_bits) of layers that are not
                drawn; None: those of `end_names` at (8, 8); {}: none. A side that is
                None is drawn.
            budget: such as "W4A4" or ("W4A4", "60kB"); the policy costs at most 3 %
                less than the first, and keeps the others. See `gmpq_tf.budget`.
            storage: as in `TableOptions`.
            latency_table: as in `TableOptions`.
            kernel_quantizer: as in `TableOptions`.
            class_names: as in `TableOptions`.

        Returns:
            The policy of `model`, its layers in graph order.

        Raises:
            PolicyError: a candidate or a pinned layer cannot be used.
            BudgetError: every policy of these candidates costs more.
        """
        names = searchable_names(model)
        pins = default_pins(end_names(model), pinned)
        candidates = layer_candidates(names, weight_bits, activation_bits, pins)
        given, what = given_budget(budget, bit_ops_budget)
        options = TableOptions(
            storage, latency_table, kernel_quantizer, tuple(class_names)
        )
        if given is None:
            raise BudgetError(
                "A random policy needs a budget. "
                "Received: budget=None. Give such as budget='W3A3'."
            )
        limits = limits_of(model, candidates, given, pinned, options, what)
        bits = draw_bits(candidates, limits, seed)
        space = {
            "weight_bits": check_candidates("weight_bits", weight_bits),
            "activation_bits": check_candidates("activation_bits", activation_bits),
            "pinned": None if pinned is None else check_pinned(names, pinned),
        }
        config = {"space": space, what: plain_budget(given)}
        if what == "budget":
            config["limits"] = records(limits, bits)
            config["storage"] = storage
        made_by = {"strategy": "random", "config": config, "seed": seed}
        return cls(model.name, bits, made_by)

    def check(self, names: Iterable[str]) -> None:
        """Requires that the policy covers exactly these layers.

        Args:
            names: the searchable layers of the model that the policy is used for.

        Raises:
            PolicyError: the policy lacks one of them or names another layer.
        """
        check_same_names(self.model, self, list(names))

    def check_model(self, model: Any) -> None:
        """Requires that the policy covers exactly the layers of a model.

        Args:
            model: a built functional Keras model.

        Raises:
            PolicyError: as `check`, or the policy is of a pruned model, and this is
                another one.
        """
        self.check(searchable_names(model))
        check_channels(self, model)

    def rename(self, renaming: str | Mapping[str, str]) -> "BitwidthPolicy":
        """Returns the policy for a network whose layers have other names.

        Args:
            renaming: a prefix for every name, such as `"backbone_"`, or old name -> new
                name; layers that are not listed keep their names.

        Returns:
            The same bits under the new names, in the same order.

        Raises:
            PolicyError: a key is not a layer of the policy, a new name is not text, or
                two layers would share one name.
        """
        renamed = new_names(self, renaming)
        layers = {renamed[name]: bits for name, bits in self.items()}
        given = renaming if isinstance(renaming, str) else dict(renaming)
        channels = {renamed[name]: count for name, count in self.channels.items()}
        made_by = {**self.made_by, "renamed": given, **_of_pruned(channels)}
        return BitwidthPolicy(self.model, layers, made_by)

    def adapt(
        self,
        model: Any,
        others: LayerBits | tuple[int, int] = PINNED_BITS,
        drop: Iterable[str] = (),
    ) -> "BitwidthPolicy":
        """Returns a policy for a larger network with this policy's model as backbone.

        Layers with equal names get the bits of this policy; all others get `others`.

        Args:
            model: a built functional Keras model, such as a detector.
            others: (weight_bits, activation_bits) of the other layers.
            drop: layers of this policy whose bits are not taken over, such as the last
                layer of a classifier.

        Returns:
            A policy of `model`, its layers in graph order.

        Raises:
            PolicyError: a layer of this policy is neither in the model nor dropped, a
                dropped one is not in the policy, or no layer is left; or the model has
                layers between those of this policy, so that it is of another backbone.
        """
        dropped, names = list(drop), searchable_names(model)
        others = check_layer_bits("others", others)
        kept = check_adapts(self.model, list(self), names, dropped)
        check_whole(self.model, model, kept.union(dropped))
        layers = {name: self[name] if name in kept else others for name in names}
        config = {
            "policy": self.made_by,
            "policy_model": self.model,
            "others": [others.weight_bits, others.activation_bits],
            "drop": dropped,
        }
        channels = {name: n for name, n in self.channels.items() if name in kept}
        made_by = {"strategy": "adapt", "config": config, **_of_pruned(channels)}
        return BitwidthPolicy(model.name, layers, made_by)

    def merge(self, other: "BitwidthPolicy") -> "BitwidthPolicy":
        """Returns a policy with the layers of both, like `dict | dict`.

        To use the policy of a backbone in a larger model, see `adapt`.

        Args:
            other: the other policy; it wins for layers that both have.

        Returns:
            A policy for this policy's model: its layers, then those only in `other`.

        Raises:
            PolicyError: `other` is not a policy.
        """
        _check_policy(other)
        config = {"policy": self.made_by, "other": other.made_by}
        channels = _of_pruned({**self.channels, **other.channels})
        return BitwidthPolicy(
            self.model,
            {**self.layers, **other.layers},
            {"strategy": "merge", "config": config, **channels},
        )

    def diff(self, other: "BitwidthPolicy") -> PolicyDiff:
        """Returns the differences between this policy and another.

        Args:
            other: the policy "after"; this one is "before".

        Returns:
            A `PolicyDiff`: false if nothing differs, readable as `str`.

        Raises:
            PolicyError: `other` is not a policy.
        """
        _check_policy(other)
        return diff_layers(self, other)

    def rank_correlation(self, other: "BitwidthPolicy") -> RankCorrelation:
        """Returns Spearman's correlation with another policy over shared layers.

        Args:
            other: any policy that shares layers.

        Returns:
            A `RankCorrelation` of weight bits and of activation bits; NaN if either
            policy gives all shared layers the same bits, or if only one is shared.

        Raises:
            PolicyError: `other` is not a policy or shares no layer.
        """
        _check_policy(other)
        return rank_correlation(self, other)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the policy as JSON, atomically.

        Args:
            path: the file to create or to replace; missing folders are made.
        """
        layers = {
            name: {key: getattr(bits, key) for key in LAYER_KEYS}
            for name, bits in self.items()
        }
        values = (number_of(self.made_by), self.model, layers, self.made_by)
        write_json(path, dict(zip(KEYS, values, strict=True)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BitwidthPolicy":
        """Reads a policy and checks all its keys and values.

        Args:
            path: a file made by `save`.

        Returns:
            The policy.

        Raises:
            PolicyError: the file is not a policy of format 1, or 2 of a pruned model.
            FileNotFoundError: there is no such file.
        """
        try:
            return cls(*read_policy_file(path))
        except PolicyError as error:
            text = str(error)[:LONGEST_MESSAGE]  # values in a file may be long
            raise PolicyError(f"{path}: {text}") from error


def _of_pruned(channels: Mapping[str, int]) -> dict[str, Any]:
    """Returns the entry of `made_by` for a pruned model; {} for others."""
    return {CHANNELS: dict(channels)} if channels else {}


def _check_policy(other: Any) -> None:
    if not isinstance(other, BitwidthPolicy):
        raise PolicyError(
            "The other policy must be a BitwidthPolicy. "
            f"Received: other={other!r:.80}. Pass BitwidthPolicy.load(path)."
        )


def _checked_layers(layers: Any) -> Mapping[str, LayerBits]:
    if not isinstance(layers, Mapping) or not layers:
        raise PolicyError(
            "A policy must map at least one layer name to its bits. "
            f"Received: layers={layers!r:.80}. "
            "Pass {name: (weight_bits, activation_bits)}."
        )
    return ReadOnlyDict({n: check_layer_bits(n, bits) for n, bits in layers.items()})


def _checked_provenance(made_by: Any) -> Mapping[str, Any]:
    check_object("made_by", made_by)
    try:
        # Through JSON text and back, so that a loaded policy equals the saved one.
        text = json.dumps(made_by, allow_nan=False)
        return json.loads(text, object_hook=ReadOnlyDict)
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"made_by must hold plain JSON values ({error}). "
            f"Received: made_by={made_by!r:.80}. "
            "Use text, finite numbers, lists, dicts."
        ) from error
