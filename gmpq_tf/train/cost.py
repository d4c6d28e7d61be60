"""Prints what a model costs, layer by layer: multiply-adds, bit operations, bytes.

  python -m train.cost --model=resnet18 --image_size=224 --num_classes=1000
  python -m train.cost --model=model.keras --policy=runs/digits/search/policy.json
  python -m train.cost --model=model.keras --policy=uniform:3,3 --format=csv
  python -m train.cost --model=model.keras --budget=W4A4,60kB
  python -m train.cost --model=ssd300_vgg16 --part=backbone

Weight bytes count kernels packed at their bits; biases and all other weights, at 32
bits, are the row "other". Activation bytes are the inputs a layer reads for one
example. With --resources or --budget it also prints, for every resource that can be
budgeted, the lowest and highest cost among the candidates' policies, and where the
budgets lie in between.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any, Literal

import keras

from gmpq_tf.align import align
from gmpq_tf.budget import parse_budget
from gmpq_tf.cost import Cost, count_cost
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.files import write_atomic
from gmpq_tf.models import MODELS, load_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.app import run_main
from gmpq_tf.run.flags import from_flags
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.cost_parts import layers_of_parts, part_costs, part_records
from gmpq_tf.train.cost_resources import format_resources, resource_records
from gmpq_tf.train.policies import check_other_layers, read_policy

HEADER = ("layer", "W", "A", "MACs", "BOPs", "share", "weights", "share", "inputs")
COLUMNS = (
    "kind name weight_bits activation_bits macs params input_elements bit_ops "
    "weight_bytes activation_bytes bit_ops_share weight_bytes_share"
).split()
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What is counted, and how it is written.

    Args:
        model: Built-in name, or a .keras or .h5 file.
        image_size: Side of the square images, in pixels: of a built-in model, or of a
            file whose input leaves its size open.
        channels: Channels of the images a built-in model reads.
        num_classes: Outputs of a built-in model.
        policy: A policy file, or uniform:WEIGHT_BITS,ACTIVATION_BITS (first layer
            and those of outputs at 8); none: 32 bits everywhere.
        rename_layers: How the layers of the policy file are called in the model:
            prefix=TEXT, or a JSON file {old name: new name}.
        other_layers: WEIGHT_BITS,ACTIVATION_BITS of the layers that the policy file
            does not name, for a policy of only the model's backbone; none: the file
            names all layers.
        drop_layers: With other_layers: layers of the policy file that the model does
            not have; none: a classifier's head_dense.
        compare: A second policy, given as policy is: the differences and the rank
            correlation are printed too.
        format: Aligned columns in human units, or raw counts as CSV or JSON.
        output: File to write; none: the terminal.
        resources: Whether to add each resource that a search can limit (bit operations,
            bytes of weights, of the .tflite file and of activations, milliseconds) with
            its lowest and highest cost among the candidates.
        budget: A budget as for gmpq-search, such as W4A4,60kB: prints whether a policy
            keeps it, and where it lies between lowest and highest.
        storage: Storage of kernels in the .tflite file: fast, packed or smallest; none:
            smallest.
        latency_table: JSON file that gmpq-latency wrote, for milliseconds.
        part: Part of a detector that is counted: its backbone (as table 2 of the paper
            counts), the heads and extra layers, or all, with a sum for each part.
        backbone: Classifier whose layer names tell which layers are the backbone: a
            built-in one, or a .keras or .h5 file; none: that of a built-in detector.
        space: the candidates.

    Raises:
        ValueError: the flags contradict each other.
    """

    model: str | None = None
    image_size: int | None = None
    channels: int = 3
    num_classes: int | None = None
    policy: str | None = None
    rename_layers: str | None = None
    other_layers: tuple[int, ...] | None = None
    drop_layers: tuple[str, ...] | None = None
    compare: str | None = None
    format: Literal["table", "csv", "json"] = "table"
    output: str | None = None
    resources: bool = False
    budget: str | None = None
    storage: str | None = None
    latency_table: str | None = None
    part: Literal["all", "backbone", "heads"] = "all"
    backbone: str | None = None
    space: SearchSpace = dataclasses.field(default_factory=SearchSpace)

    def __post_init__(self) -> None:
        if self.model is None:
            raise ValueError(
                "A model must be given. Received: model=None. Give a .keras or .h5 "
                f"file, or one of {', '.join(MODELS)}."
            )
        check_other_layers(self.other_layers, self.drop_layers)
        adapted = self.rename_layers or self.other_layers
        if self.policy is None and (self.compare or adapted):
            raise ValueError(
                "compare, rename_layers and other_layers need a policy. "
                f"Received: compare={self.compare!r}, "
                f"rename_layers={self.rename_layers!r}, "
                f"other_layers={self.other_layers!r}, policy=None. Give --policy."
            )
        if self.compare and self.format == "csv":
            raise ValueError(
                "CSV has no place for what differs. "
                f"Received: compare={self.compare!r}, format='csv'. "
                "Use --format=table or --format=json."
            )
        if self.format == "csv" and (self.resources or self.budget):
            raise ValueError(
                "CSV has no place for resources and budgets. "
                f"Received: resources={self.resources}, budget={self.budget!r}, "
                "format='csv'. Use --format=table or --format=json."
            )
        if self.part != "all" and (self.resources or self.budget):
            raise ValueError(
                "Resources and budgets are of whole models. "
                f"Received: part={self.part!r}, resources={self.resources}, "
                f"budget={self.budget!r}. Leave --part out, or the others."
            )
        if self.budget is not None:
            parse_budget(self.budget)
        TableOptions(self.storage, self.latency_table)


def describe_cost(config: CostConfig) -> str:
    """Counts the model's cost and formats it as the command prints it.

    Args:
        config: model, policy and format.

    Returns:
        The text, ending in a newline.

    Raises:
        ValueError: a file or a name cannot be used, or the policy names other layers.
    """
    model = counted_model(config)
    policy = other = None
    if config.policy is not None:
        policy = read_policy(
            config.policy,
            model,
            config.rename_layers,
            config.other_layers,
            config.drop_layers,
        )
    if config.compare is not None:
        other = read_policy(config.compare, model)
    cost = count_cost(model, policy)
    parts = part_costs(cost, layers_of_parts(model, config.backbone, config.part))
    if config.part == "all":
        records = cost_records(cost, part_records(parts))
    else:
        records = cost_records(parts[config.part])
    if config.format == "csv":
        return format_csv(records)
    reached = None
    if config.resources or config.budget:
        options = TableOptions(config.storage, config.latency_table)
        reached = resource_records(model, config.space, config.budget, options, policy)
    if config.format == "json":
        return format_json(records, model, policy, other, reached)
    text = format_records(records)
    if reached is not None:
        text += f"\n{format_resources(reached)}"
    if policy is not None and other is not None:
        text += f"\n{policy.diff(other)}\n{policy.rank_correlation(other)}\n"
    return text


def counted_model(config: CostConfig) -> keras.Model:
    """Builds or reads the model, with its image size.

    Args:
        config: the flags.

    Returns:
        A model whose input size is known, unless the file leaves it open and
        `image_size` is not given.

    Raises:
        ValueError: the name or file cannot be used, or its input has another size.
    """
    name, size = str(config.model), config.image_size
    if name in MODELS:
        shape = None if size is None else (size, size, config.channels)
        return load_model(name, shape, config.num_classes)
    if config.num_classes is not None:
        raise ValueError(
            "A model file has its classes. "
            f"Received: num_classes={config.num_classes}, model={name!r}. "
            "Leave --num_classes out."
        )
    model = load_model(name)
    return model if size is None else with_image_size(model, size)


def with_image_size(model: keras.Model, size: int) -> keras.Model:
    """Fixes the image size of a model that leaves it open.

    Args:
        model: a functional model with one image as input.
        size: side of the square images, in pixels.

    Returns:
        The model itself where it has that size already, else a copy with new weights.

    Raises:
        ValueError: the model has another fixed size, or its input is not one image.
    """
    shape = tuple(model.inputs[0].shape)[1:]
    fits = len(shape) == 3 and all(side in (None, size) for side in shape[:2])
    if len(model.inputs) != 1 or not fits:
        raise ValueError(
            "image_size must be what the model reads. "
            f"Received: image_size={size}, inputs {[x.shape for x in model.inputs]}. "
            "Leave --image_size out, or save the model with that size."
        )
    if None not in shape[:2]:
        return model
    inputs = keras.Input((size, size, shape[2]))
    return keras.models.clone_model(model, input_tensors=inputs)


def cost_records(cost: Cost, parts: Sequence[Record] = ()) -> list[Record]:
    """Returns the rows of the table: layers, float layers, parts, the rest, the total.

    Args:
        cost: cost of a model.
        parts: additional rows, sums over some layers; they are not added to the total.

    Returns:
        One dict per row, with the keys `COLUMNS`; None where a row has no such value.
        Shares are of the total, 0 to 1.
    """
    layers: list[Record] = [
        {"kind": "layer", **dataclasses.asdict(layer)} for layer in cost.layers
    ]
    layers += [
        {"kind": "float", **dataclasses.asdict(layer)} for layer in cost.float_layers
    ]
    other = {"params": cost.other_params, "weight_bytes": cost.other_bytes}
    total: Record = {
        "macs": cost.macs,
        "params": cost.params,
        "input_elements": sum(layer["input_elements"] for layer in layers),
        "bit_ops": cost.bit_ops,
        "weight_bytes": cost.weight_bytes,
        "activation_bytes": cost.activation_bytes,
    }
    rest: list[Record] = [{"kind": "other", **other}, {"kind": "total", **total}]
    rows = [*layers, *parts, *rest]
    return [_with_shares(row, total) for row in rows]


def format_records(records: list[Record]) -> str:
    """Prints rows as aligned columns in human units (k = 1e3, M = 1e6, G = 1e9).

    Args:
        records: from `cost_records`.

    Returns:
        Lines of text. Shares are of all BOPs and of all weight bytes; `inputs` are
        activation bytes.
    """
    return align(HEADER, [_cells(row) for row in records]) + "\n"


def format_csv(records: list[Record]) -> str:
    """Prints rows as CSV with raw counts.

    Args:
        records: from `cost_records`.

    Returns:
        A header line and one line per row; the column `kind` tells layers from sums.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def format_json(
    records: list[Record],
    model: keras.Model,
    policy: BitwidthPolicy | None,
    other: BitwidthPolicy | None,
    reached: Record | None = None,
) -> str:
    """Prints rows as JSON with raw counts.

    Args:
        records: from `cost_records`.
        model: the model that was counted.
        policy: its bits; None for full precision.
        other: the policy it is compared with, or None.
        reached: from `resource_records`, or None.

    Returns:
        A JSON object with the keys model, input_shapes, made_by, layers, float_layers,
        other and total; also `comparison` with a second policy, `parts` for a detector,
        and the keys of `reached`.
    """
    rows = [{k: v for k, v in row.items() if v is not None} for row in records]
    content: Record = {
        "model": model.name,
        "input_shapes": [list(tensor.shape) for tensor in model.inputs],
        "made_by": None if policy is None else policy.made_by,
        "layers": [row for row in rows if row["kind"] == "layer"],
        "float_layers": [row for row in rows if row["kind"] == "float"],
        "other": rows[-2],
        "total": rows[-1],
        **(reached or {}),
    }
    if parts := [row for row in rows if row["kind"] == "part"]:
        content["parts"] = parts
    if policy is not None and other is not None:
        content["comparison"] = policy_comparison(policy, other)
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def policy_comparison(policy: BitwidthPolicy, other: BitwidthPolicy) -> Record:
    """Returns the differences between two policies as plain JSON values.

    Args:
        policy: the first policy ("before").
        other: the second policy ("after").

    Returns:
        changed, only_before and only_after as in `PolicyDiff`, and rank_correlation, in
        which undefined values are None.
    """
    correlation = dataclasses.asdict(policy.rank_correlation(other))
    return {
        **dataclasses.asdict(policy.diff(other)),
        "rank_correlation": {
            key: None if value != value else value  # NaN, which JSON lacks
            for key, value in correlation.items()
        },
    }


def _with_shares(row: Record, total: Record) -> Record:
    for key in ("bit_ops", "weight_bytes"):
        if key in row and total[key]:
            row[f"{key}_share"] = row[key] / total[key]
    return {key: row.get(key) for key in COLUMNS}


def _cells(row: Record) -> tuple[str, ...]:
    return (
        row["name"] or row["kind"],
        str(row["weight_bits"] or ""),
        str(row["activation_bits"] or ""),
        _human(row["macs"]),
        _human(row["bit_ops"]),
        _percent(row["bit_ops_share"]),
        _human(row["weight_bytes"], "B"),
        _percent(row["weight_bytes_share"]),
        _human(row["activation_bytes"], "B"),
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _human(count: int | None, unit: str = "") -> str:
    if count is None:
        return ""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * (1 - 5e-6):  # 999,995 would print as 1000.00 k
            return f"{count / size:.2f} {prefix}{unit}"
    return f"{count} {unit}".strip()


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    config = from_flags(CostConfig)
    text = describe_cost(config)
    if config.output is None:
        print(text, end="")
    else:
        write_atomic(config.output, text)
        print(f"Costs: {config.output}")


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-cost`."""
    run_main(main, __doc__, CostConfig)


if __name__ == "__main__":
    run()
