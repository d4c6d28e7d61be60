"""Which layers of a detector are its backbone, and what each part costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import keras

from gmpq_tf.cost import Cost, LayerCost
from gmpq_tf.detection import default_boxes_of
from gmpq_tf.graph import searchable_layers, searchable_names
from gmpq_tf.models import MODELS, load_model
from gmpq_tf.models.ssd import BACKBONES

PARTS = ("backbone", "heads")
_ANY_SIZE = (32, 32, 3)  # names of layers do not depend on it


def known_backbone(model: keras.Model) -> str | None:
    """The built-in classifier that a detector's backbone is of; None: none is known."""
    return BACKBONES.get(model.name)


def backbone_layers(model: keras.Model, classifier: str) -> tuple[str, ...]:
    """Names of the layers of a detector that a classifier has too, but for its head.

    Unlike SSD's fc6 and fc7, which are convolutions in the detector, dense layers of
    the classifier are no part of it: table 2 of the paper counts none.

    Args:
        model: the detector.
        classifier: a built-in name, or a .keras or .h5 file.

    Returns:
        In the order of the detector's graph.

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
    """The names of the layers of each part; {} where parts are not known or asked for.

    Args:
        model: that is counted.
        classifier: whose layers are the backbone's; None: as the model's name says.
        part: "all", or the part that is asked for.

    Raises:
        ValueError: a part is asked for, and no backbone is known.
    """
    named = classifier or known_backbone(model)
    if named is None:
        if part == "all":
            return {}
        what = "a detector" if default_boxes_of(model) is not None else "no detector"
        raise ValueError(
            "Parts need a backbone that is known. Received: "
            f"part={part!r} of model={model.name!r}, {what} of {', '.join(BACKBONES)}. "
            "Name the classifier whose layers it has: --backbone=NAME or a file."
        )
    backbone = backbone_layers(model, named)
    others = tuple(n for n in searchable_names(model) if n not in backbone)
    return {"backbone": backbone, "heads": others}


def part_cost(cost: Cost, names: Collection[str], floats: bool = False) -> Cost:
    """What some layers cost: their kernels and what these read, no biases.

    Args:
        cost: of the whole model.
        names: of the layers.
        floats: whether the layers that no policy names belong to the part.
    """
    layers = tuple(layer for layer in cost.layers if layer.name in names)
    in_float = cost.float_layers if floats else ()
    total = _sums((*layers, *in_float))
    return Cost(**total, layers=layers, float_layers=in_float)


def part_costs(cost: Cost, parts: Mapping[str, Collection[str]]) -> dict[str, Cost]:
    """The cost of each part: layers in float are counted with the heads.

    Args:
        cost: of the whole model.
        parts: from `layers_of_parts`.
    """
    return {n: part_cost(cost, own, n == "heads") for n, own in parts.items()}


def part_records(costs: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """A row of the table for each part.

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
