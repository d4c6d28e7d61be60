"""A policy: how many bits each layer's weights and activations get."""

import json
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gmpq_tf.files import write_json
from gmpq_tf.graph import searchable_names
from gmpq_tf.names import suggest

MIN_BITS = 2
MAX_BITS = 8
PINNED_BITS = (8, 8)
FORMAT = 1
MAX_FILE_BYTES = 10_000_000
_KEYS = ("format", "model", "layers", "made_by")
_LAYER_KEYS = ("weight_bits", "activation_bits")


class PolicyError(ValueError):
    """A policy, or a file that should hold one, that cannot be used."""


def check_bits(name: str, bits: Any) -> int:
    """Returns a bit-width as an int, or says why it is none.

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
            f"Received: {name}={bits!r}. Use one of 2, 3, 4, 5, 6, 7, 8."
        )
    return int(bits)


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
        for name in _LAYER_KEYS:
            object.__setattr__(self, name, check_bits(name, getattr(self, name)))


@dataclass(frozen=True, repr=False)
class BitwidthPolicy(Mapping[str, LayerBits]):
    """The bit-widths of every searchable layer of a model, by layer name.

    A mapping: `policy["conv1"].weight_bits`, `for name in policy`, `policy.items()`.
    Two policies are equal when they give the same model the same bits, whoever made
    them.

    Args:
        model: name of the model the policy is for.
        layers: layer name -> `LayerBits` or `(weight_bits, activation_bits)`.
        made_by: where the policy comes from (strategy, config, seed, versions): plain
            JSON values.

    Raises:
        PolicyError: a value is of the wrong type or a bit-width not in 2 to 8.
    """

    model: str
    layers: Mapping[str, LayerBits | tuple[int, int]]
    made_by: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise PolicyError(
                "A policy must name its model. "
                f"Received: model={self.model!r}. Pass the model's name."
            )
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        object.__setattr__(self, "made_by", _checked_provenance(self.made_by))

    def __getitem__(self, name: str) -> LayerBits:
        if name not in self.layers:
            raise KeyError(
                f"The policy for {self.model!r} has no such layer. "
                f"Received: name={name!r}. {suggest(str(name), self.layers)}"
            )
        return cast(LayerBits, self.layers[name])  # made so on construction

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

    @classmethod
    def uniform(
        cls,
        model: Any,
        weight_bits: int,
        activation_bits: int,
        pinned: Mapping[str, tuple[int, int]] | None = None,
    ) -> "BitwidthPolicy":
        """Returns the policy that treats every layer alike.

        Args:
            model: a built functional Keras model.
            weight_bits: bits of every kernel, 2 to 8.
            activation_bits: bits of every layer's input, 2 to 8.
            pinned: layer name -> (weight_bits, activation_bits) of the exceptions; None
                is the first and last searchable layer at (8, 8), {} is no exception.

        Returns:
            The policy of `model`, its layers in graph order.

        Raises:
            PolicyError: a bit-width not in 2 to 8, or a pinned layer not in the model.
        """
        names = searchable_names(model)
        pinned = check_pinned(names, pinned)
        layers = {n: pinned.get(n, (weight_bits, activation_bits)) for n in names}
        config = {"weight_bits": weight_bits, "activation_bits": activation_bits}
        return cls(model.name, layers, {"strategy": "uniform", "config": config})

    def check(self, names: Iterable[str]) -> None:
        """Raises unless the policy covers exactly these layers.

        Args:
            names: the searchable layers of the model the policy is to be used on.

        Raises:
            PolicyError: the policy lacks one of them or names another layer.
        """
        names = list(names)
        unknown = [name for name in self if name not in names]
        missing = [name for name in names if name not in self]
        if unknown or missing:
            near = suggest(*((unknown[0], names) if unknown else (missing[0], self)))
            raise PolicyError(
                "A policy must name exactly the searchable layers of the model. "
                f"Received: the policy for {self.model!r} with "
                f"unknown={_shorten(unknown)}, missing={_shorten(missing)}. {near} "
                "Use the model it was searched on, or search again for this model."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the policy as JSON, whole or not at all.

        Args:
            path: the file to make or to replace; missing folders are made.
        """
        layers = {
            name: {key: getattr(bits, key) for key in _LAYER_KEYS}
            for name, bits in self.items()
        }
        values = (FORMAT, self.model, layers, self.made_by)
        write_json(path, dict(zip(_KEYS, values, strict=True)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BitwidthPolicy":
        """Reads a policy and checks every key and value of it.

        Args:
            path: a file made by `save`.

        Returns:
            The policy.

        Raises:
            PolicyError: the file is not a policy of format 1.
            FileNotFoundError: there is no such file.
        """
        try:
            return _parse_policy(_read_json(Path(path)))
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error


def check_pinned(
    names: Iterable[str], pinned: Mapping[str, tuple[int, int]] | None
) -> dict[str, tuple[int, int]]:
    """Returns the pinned layers of a model, checked against its layer names.

    Args:
        names: the searchable layers, in graph order.
        pinned: layer name -> (weight_bits, activation_bits), {} for none; None is the
            first and the last layer at (8, 8).

    Returns:
        Layer name -> (weight_bits, activation_bits).

    Raises:
        PolicyError: a pinned layer is not among the names.
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
    return dict(pinned)


def _checked_layers(layers: Any) -> dict[str, LayerBits]:
    if not isinstance(layers, Mapping) or not layers:
        raise PolicyError(
            "A policy must map at least one layer name to its bits. "
            f"Received: layers={layers!r}. "
            "Pass {name: (weight_bits, activation_bits)}."
        )
    return {name: _checked_layer(name, bits) for name, bits in layers.items()}


def _checked_layer(name: Any, bits: Any) -> LayerBits:
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


def _checked_provenance(made_by: Any) -> dict[str, Any]:
    _check_object("made_by", made_by)
    try:
        # Through text and back: a saved and loaded policy says the same.
        return json.loads(json.dumps(made_by, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"made_by must hold plain JSON values ({error}). "
            f"Received: made_by={made_by!r}. Use text, finite numbers, lists, dicts."
        ) from error


def _read_json(path: Path) -> Any:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise PolicyError(
            f"A policy file must not exceed {MAX_FILE_BYTES} bytes. "
            f"Received: size={size}. Pass the policy.json of a search."
        )
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_unique_keys)
    except PolicyError:
        raise
    except (ValueError, RecursionError) as error:
        raise PolicyError(
            f"A policy file must be JSON. Received: {error}. "
            "Pass the policy.json of a search, or repair that place."
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise PolicyError(
                "A name must occur once. "
                f"Received: {key!r} twice. Delete or rename one of them."
            )
        seen[key] = value
    return seen


def _parse_policy(content: Any) -> BitwidthPolicy:
    _check_keys("the policy", content, _KEYS)
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise PolicyError(
            f"The format of a policy file must be {FORMAT}. "
            f"Received: format={content['format']!r}. Search again, or use the "
            "release of gmpq_tf that wrote the file."
        )
    _check_object("layers", content["layers"])
    layers = {name: _parse_layer(name, x) for name, x in content["layers"].items()}
    return BitwidthPolicy(content["model"], layers, content["made_by"])


def _parse_layer(name: str, content: Any) -> LayerBits:
    _check_keys(f"layer {name!r}", content, _LAYER_KEYS)
    return _checked_layer(name, tuple(content[key] for key in _LAYER_KEYS))


def _check_object(name: str, content: Any) -> None:
    if not isinstance(content, Mapping):
        raise PolicyError(
            f"{name} must be a mapping with names as keys. "
            f"Received: {name}={content!r:.80}. Pass {{}} or {{name: value}}."
        )


def _check_keys(name: str, content: Any, keys: tuple[str, ...]) -> None:
    _check_object(name, content)
    unknown = [key for key in content if key not in keys]
    missing = [key for key in keys if key not in content]
    if unknown or missing:
        near = f" {suggest(unknown[0], keys)}" if unknown else ""
        raise PolicyError(
            f"{name} must have exactly the keys {', '.join(keys)}. "
            f"Received: unknown={_shorten(unknown)}, missing={_shorten(missing)}.{near}"
        )


def _shorten(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{names[:limit]}{more}"
