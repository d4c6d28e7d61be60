"""Splits a detector into backbone and heads, and sums the cost of each part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import keras

from gmpq_tf.cost import Cost, LayerCost
from gmpq_tf.detection.region_layers import is_detector
from gmpq_tf.graph import searchable_layers, searchable_names
from gmpq_tf.models import MODELS, load_model
from gmpq_tf.models.ssd import BACKBONES

PARTS = ("backbone", "heads")
_ANY_SIZE = (32, 32, 3)  # input shape; names of layers do not depend on it


def known_backbone(model: keras.Model) -> str | None:
    """Returns the name of the built-in classifier a detector is based on, or None."""
    return BACKBONES.get(model.name)


def backbone_layers(model: keras.Model, classifier: str) -> tuple[str, ...]:
    """Names of a detector's layers that a classifier has too, without its head.

    Dense layers of the classifier never belong to the backbone, as in table 2 of the
    paper: fc6 and fc7 of VGG16 are convolutions in SSD.

    Args:
        model: the detector.
        classifier: a built-in name, or a .keras or .h5 file.

    Returns:
        Layer names, in the order of the detector's graph.

    Raises:
        ValueError: the classifier cannot be read, or shares no layer.
    """
    shape = _ANY_SIZE if classifier in MODELS else None
    source = load_model(classifier, shape, 2 if shape else None)
    own = {
        name
        for name, layer in zip(
            searchable_names(source), searchable_layers(source), strict=True
        )
        if not isinstance(layer, keras.layers.Dense)
    }
    shared = tuple(name for name in searchable_names(model) if name in own)
    if not shared:
        raise ValueError(
            "A backbone must share layers with the model, by name. Received: "
            f"backbone={classifier!r}, none of whose layers model={model.name!r} has. "
            "Name the classifier that the detector was made of."
        )
    return shared


def layers_of_parts(
    model: keras.Model, classifier: str | None, part: str
) -> dict[str, tuple[str, ...]]:
    """Returns part -> names of its layers.

    Args:
        model: the model that is counted.
        classifier: the classifier whose layers form the backbone; None: the built-in
            one that the model's name stands for.
        part: "all", or a key of `PARTS`.

    Returns:
        The names; {} where `part` is "all" and no backbone is known.

    Raises:
        ValueError: one part is asked for, but no backbone is known.
    """
    named = classifier or known_backbone(model)
    if named is None:
        if part == "all":
            return {}
        what = "a detector" if is_detector(model) else "no detector"
        raise ValueError(
            "Parts need a backbone that is known. Received: "
            f"part={part!r} of model={model.name!r}, {what} of {', '.join(BACKBONES)}. "
            "Name the classifier whose layers it has: --backbone=NAME or a file."
        )
    backbone = backbone_layers(model, named)
    others = tuple(n for n in searchable_names(model) if n not in backbone)
    return {"backbone": backbone, "heads": others}


def part_cost(cost: Cost, names: Collection[str], floats: bool = False) -> Cost:
    """Sums the cost of some layers: kernels and the activations they read, no biases.

    Args:
        cost: cost of the whole model.
        names: names of the layers.
        floats: whether to add the layers that have no bit-widths and stay in float.
    """
    layers = tuple(layer for layer in cost.layers if layer.name in names)
    in_float = cost.float_layers if floats else ()
    sums: dict[str, Any] = _sums((*layers, *in_float))
    return Cost(**sums, layers=layers, float_layers=in_float)


def part_costs(cost: Cost, parts: Mapping[str, Collection[str]]) -> dict[str, Cost]:
    """Returns part -> cost; layers that stay in float are counted with the heads.

    Args:
        cost: cost of the whole model.
        parts: from `layers_of_parts`.
    """
    return {n: part_cost(cost, own, n == "heads") for n, own in parts.items()}


def part_records(costs: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """Returns one row of the cost table for each part.

    Args:
        costs: from `part_costs`.
    """
    return [
        {"kind": "part", "name": name, **_sums((*cost.layers, *cost.float_layers))}
        | {"input_elements": _sum(cost, "input_elements")}
        for name, cost in costs.items()
    ]


def _sum(cost: Cost, field: str) -> int:
    return sum(getattr(each, field) for each in (*cost.layers, *cost.float_layers))


def _sums(layers: tuple[LayerCost, ...]) -> dict[str, int]:
    fields = ("macs", "params", "bit_ops", "weight_bytes", "activation_bytes")
    return {field: sum(getattr(each, field) for each in layers) for field in fields}
