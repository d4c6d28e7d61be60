"""Tables of measured operator times, and the latency that follows for a model.

`gmpq-latency` measures them. Reading tables and adding times up needs neither
TensorFlow nor Keras.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gmpq_tf.files import parse_json, read_text, write_json

FORMAT = 1
# Storage of a file -> (most weight bits, bits of the container they are stored in).
CONTAINERS = {
    "fast": ((8, 8),),
    "packed": ((4, 4), (8, 8)),
    "smallest": ((2, 2), (4, 4), (8, 8)),
}
WIDTHS = ("8", "4", "2")


class LatencyError(ValueError):
    """A latency table is invalid, or lacks a model or operator."""


def container_bits(storage: str, weight_bits: int) -> int:
    """Returns the fewest bits in which a storage can hold each weight of a kernel.

    Args:
        storage: "fast", "packed" or "smallest".
        weight_bits: 2 to 8.

    Raises:
        LatencyError: there is no such storage.
    """
    if storage not in CONTAINERS or not 2 <= weight_bits <= 8:
        raise LatencyError(
            f"storage must be one of {', '.join(CONTAINERS)}, weight bits 2 to 8. "
            f"Received: storage={storage!r}, weight_bits={weight_bits!r}."
        )
    return next(bits for most, bits in CONTAINERS[storage] if weight_bits <= most)


@dataclass(frozen=True)
class MeasuredModel:
    """The operators of a model's files.

    Args:
        name: name of the model.
        macs: layer name -> multiply-adds, by which models are identified.
        layers: layer name -> {"8", "4", "2": keys of the operators of its kernel, if
            weights are to be stored in 8, 4 or 2 bits}; the export uses a wider type if
            the runtime requires it.
        rest: keys of all other operators, at 8 bits.
        outline: `gmpq_tf.graph.outline` of the model, which tells those apart whose
            layers differ in what takes no multiply-adds; "": not known, in tables of
            earlier releases.
    """

    name: str
    macs: Mapping[str, int]
    layers: Mapping[str, Mapping[str, tuple[str, ...]]]
    rest: tuple[str, ...]
    outline: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the model as plain JSON values, for `parse_model`."""
        layers = {
            name: {width: list(keys) for width, keys in widths.items()}
            for name, widths in self.layers.items()
        }
        rest = list(self.rest)
        return {
            "name": self.name,
            "macs": dict(self.macs),
            "layers": layers,
            "rest": rest,
            "outline": self.outline,
        }

    def is_of(self, macs: Mapping[str, int], outline: str = "") -> bool:
        """Whether it is the model of these multiply-adds, and of this outline.

        Args:
            macs: layer name -> multiply-adds.
            outline: "": not known, any.
        """
        known = self.outline and outline
        return dict(self.macs) == dict(macs) and (not known or self.outline == outline)


@dataclass(frozen=True)
class LatencyTable:
    """Measured milliseconds of operators, on one device.

    Args:
        device: the user's name for the device, such as "this machine" or "phone".
        threads: number of threads of the runtime.
        runtime: {"name", "version"}.
        processor: architecture, such as "x86_64".
        created: date and time, ISO 8601.
        rows: key of an operator (codes, shapes, types, options) -> milliseconds.
        models: the operators of the measured models.
    """

    device: str
    threads: int
    runtime: Mapping[str, str]
    processor: str
    created: str
    rows: Mapping[str, float] = field(default_factory=dict)
    models: tuple[MeasuredModel, ...] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Reads a table.

        Args:
            path: a JSON file that `gmpq-latency` wrote.

        Raises:
            LatencyError: the file is missing, or is not such a table.
        """
        try:
            return _parse(parse_json(read_text(path)))
        except (OSError, ValueError) as error:
            raise LatencyError(
                "A latency table must be a file that gmpq-latency wrote. "
                f"Received: path={str(path)!r} ({error}). Measure again."
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to a JSON file, atomically."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Returns the table as plain JSON values, the contents of its file."""
        return {
            "format": FORMAT,
            "device": self.device,
            "threads": self.threads,
            "runtime": dict(self.runtime),
            "processor": self.processor,
            "created": self.created,
            "rows": [{"key": key, "ms": ms} for key, ms in self.rows.items()],
            "models": [model.to_json() for model in self.models],
        }

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Returns the keys that were not measured, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self.rows]

    def predict(self, keys: Iterable[str]) -> float:
        """Returns the milliseconds of a file with these operators: their sum.

        Args:
            keys: keys of its operators.

        Raises:
            LatencyError: an operator was not measured.
        """
        keys = list(keys)
        if absent := self.missing(keys):
            raise LatencyError(
                "Every operator of a file must have been measured. "
                f"Received: {len(absent)} that were not, such as {absent[0]!r:.120}. "
                "Run gmpq-latency with this model and the same --output."
            )
        return sum(self.rows[key] for key in keys)

    def model(self, macs: Mapping[str, int], outline: str = "") -> MeasuredModel:
        """Returns the operators of a model.

        Args:
            macs: layer name -> multiply-adds, as `gmpq_tf.graph.layer_macs` counts
                them.
            outline: `gmpq_tf.graph.outline` of the model; "": any.

        Raises:
            LatencyError: the model was not measured, or for images of another size, or
                in batches of another size.
        """
        for model in self.models:
            if model.is_of(macs, outline):
                return model
        known = ", ".join(
            f"{m.name} ({sum(m.macs.values()):,} MACs)" for m in self.models
        )
        if any(model.is_of(macs) for model in self.models):
            known += ", of other layers between them, or of another batch size"
        raise LatencyError(
            "The table must hold the model, for images of the same size. "
            f"Received: a model of {len(macs)} layers and {sum(macs.values()):,} MACs; "
            f"the table holds {known or 'none'}. Run gmpq-latency with this --model, "
            "--image_size and the table as --output."
        )

    def layer_ms(
        self,
        model: MeasuredModel,
        layer: str,
        weight_bits: int,
        activation_bits: int,
        storage: str,
    ) -> float:
        """Returns the milliseconds of a layer's kernel, with its patches if it has any.

        Args:
            model: result of `model`.
            layer: name of the layer.
            weight_bits: 2 to 8.
            activation_bits: 2 to 8; without effect, since files hold activations in 8
                bits.
            storage: "fast", "packed" or "smallest".
        """
        return self.predict(
            model.layers[layer][str(container_bits(storage, weight_bits))]
        )

    def rest_ms(self, model: MeasuredModel) -> float:
        """Returns the milliseconds of everything that policies do not change."""
        return self.predict(model.rest)

    def with_rows(self, rows: Mapping[str, float], created: str) -> LatencyTable:
        """Returns the table with more rows; rows of the same keys are replaced."""
        return replace(self, rows={**self.rows, **rows}, created=created)

    def with_model(self, model: MeasuredModel) -> LatencyTable:
        """Returns the table with a model, which replaces itself."""
        others = [m for m in self.models if not m.is_of(model.macs, model.outline)]
        return replace(self, models=(*others, model))


def _parse(value: Any) -> LatencyTable:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"its format must be {FORMAT}, not {found!r}")
    runtime = _typed(value, "runtime", dict)
    threads = _typed(value, "threads", int)
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    rows: dict[str, float] = {}
    for row in _typed(value, "rows", list):
        key, ms = _typed(row, "key", str), _number(row, "ms")
        if key in rows:
            raise ValueError(f"an operator is there twice: {key!r:.80}")
        rows[key] = ms
    table = LatencyTable(
        device=_typed(value, "device", str),
        threads=threads,
        runtime={name: _typed(runtime, name, str) for name in ("name", "version")},
        processor=_typed(value, "processor", str),
        created=_typed(value, "created", str),
        rows=rows,
        models=tuple(map(parse_model, _typed(value, "models", list))),
    )
    for model in table.models:
        kernels = (keys for widths in model.layers.values() for keys in widths.values())
        table.predict(key for keys in (model.rest, *kernels) for key in keys)
    return table


def parse_model(value: Any) -> MeasuredModel:
    """Returns a model from `MeasuredModel.to_json`.

    Raises:
        ValueError: the value is not such a model.
    """
    macs, layers = _typed(value, "macs", dict), _typed(value, "layers", dict)
    if set(macs) != set(layers):
        raise ValueError("macs and layers must name the same layers")
    return MeasuredModel(
        _typed(value, "name", str),
        {name: _typed(macs, name, int) for name in macs},
        {
            name: {width: _keys(widths, width) for width in WIDTHS}
            for name, widths in layers.items()
        },
        _keys(value, "rest"),
        _typed({"outline": "", **value}, "outline", str),
    )


def _keys(value: Any, name: str) -> tuple[str, ...]:
    keys = _typed(value, name, list)
    if not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{name!r} must list texts")
    return tuple(keys)


def _typed(value: Any, name: str, kind: type) -> Any:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ValueError(f"{name!r} must be {kind.__name__}, not {found!r:.80}")
    return found


def _number(value: Any, name: str) -> float:
    found = value.get(name) if isinstance(value, dict) else None
    if (
        isinstance(found, int | float)
        and not isinstance(found, bool)
        and math.isfinite(found)
        and found >= 0
    ):
        return float(found)
    raise ValueError(f"{name!r} must be a time, 0 or more, not {found!r:.80}")
