"""Cost tables: the cost of each layer at each bit-width, for each resource.

`COST_TABLES` has one row for each resource that a budget can limit. Expected costs,
reachable ranges, the choice of a policy and reports all read the tables; no other code
depends on what a resource is.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gmpq_tf.bits import MAX_BITS, MIN_BITS, LayerBits, uniform_bits
from gmpq_tf.budget import (
    BIT_OPS,
    FILE_BYTES,
    FULL_PRECISION_BITS,
    STORAGES,
    UNITS,
    Budget,
    BudgetError,
    Candidates,
    bit_ops,
)
from gmpq_tf.float_layers import float_bit_ops
from gmpq_tf.graph import kernel_size, layer_macs, searchable_layers, searchable_names
from gmpq_tf.spelling import suggest

ALL_BITS = range(MIN_BITS, MAX_BITS + 1)
Bits = Mapping[str, "LayerBits | tuple[int, int]"]


@dataclass(frozen=True, eq=False)
class CostTable:
    """The cost of a model in one resource, by layer and bit-widths.

    Args:
        resource: a key of `COST_TABLES`.
        unit: unit of all costs, a key of `UNITS`: "bit operations", "bytes", "ms".
        layers: layer name -> [7, 7]: its cost at 2 to 8 weight bits (rows) and 2 to 8
            activation bits (columns), for one example.
        constant: cost of everything that policies do not change.
        full: cost of the float model, for budgets that are fractions; None: not known.
        note: a remark for messages about budgets, such as what the constant is.
    """

    resource: str
    unit: str
    layers: Mapping[str, Any]
    constant: float = 0.0
    full: float | None = None
    note: str = ""
    _rows: dict[str, list[list[float]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise BudgetError(
                "A table must count in a unit that budgets can be said in. "
                f"Received: unit={self.unit!r} of {self.resource}. Use one of "
                f"{', '.join(UNITS)}, or add yours to gmpq_tf.budget.UNITS, as in "
                f"UNITS[{self.unit!r}] = {{{self.unit!r}: 1}}."
            )
        rows = {}
        for name, values in self.layers.items():
            array = np.asarray(values, "float64")
            if array.shape != (len(ALL_BITS),) * 2 or not np.isfinite(array).all():
                raise ValueError(
                    "A layer must have a finite cost at 2 to 8 weight bits and 2 to 8 "
                    f"activation bits, [7, 7]. Received: {self.resource} of {name!r} "
                    f"of shape {array.shape}. Fill np.zeros((7, 7))."
                )
            rows[name] = array.tolist()
        object.__setattr__(self, "_rows", rows)

    def at(self, name: str, weight_bits: int, activation_bits: int) -> float:
        """Returns the cost of one layer.

        Args:
            name: name of the layer.
            weight_bits: 2 to 8.
            activation_bits: 2 to 8.
        """
        return self._rows[name][weight_bits - MIN_BITS][activation_bits - MIN_BITS]

    def of(self, name: str, candidates: tuple[Any, Any]) -> np.ndarray:
        """Returns the costs of one layer at its candidates, `C_k` of eq. 7.

        Args:
            name: name of the layer.
            candidates: (weight bits, activation bits) it may take.

        Returns:
            [weight candidates, activation candidates].
        """
        weights, inputs = candidates
        return np.array([[self.at(name, w, a) for a in inputs] for w in weights])

    def cost(self, bits: Bits) -> float:
        """Returns the cost of a policy, with the constant part.

        Args:
            bits: layer name -> `LayerBits` or (weight bits, activation bits).
        """
        return self.constant + self.of_layers(bits)

    def of_layers(self, bits: Bits) -> float:
        """Returns the cost of a policy's layers, without the constant part."""
        return sum(self.at(name, *_pair(pair)) for name, pair in bits.items())

    def expected(
        self, probabilities: Mapping[str, tuple[Any, Any]], candidates: Candidates
    ) -> float:
        """Returns the expected cost `constant + sum_k pi_w^T C_k pi_a` (eq. 7).

        Args:
            probabilities: layer name -> (pi_w, pi_a), [candidates] each.
            candidates: (weight bits, activation bits) of each layer.
        """
        terms = (
            np.asarray(w) @ self.of(name, candidates[name]) @ np.asarray(a)
            for name, (w, a) in probabilities.items()
        )
        return self.constant + float(sum(terms))

    def macs(self, name: str, candidates: tuple[Any, Any]) -> float | None:
        """Returns `m` if each cost is `m * weight bits * activation bits`, else None.

        The expectation of such costs is `m E[w] E[a]`, the form of eq. 7, which has
        fewer roundings in float32 than `pi_w^T C_k pi_a`.

        Args:
            name: name of the layer.
            candidates: (weight bits, activation bits) it may take.
        """
        costs = self.of(name, candidates)
        products = np.outer(*candidates)
        unit = costs[0, 0] / products[0, 0]
        return float(unit) if np.array_equal(costs, unit * products) else None

    def range(self, candidates: Candidates) -> tuple[float, float]:
        """Returns the smallest and the largest cost of a policy, with the constant.

        Args:
            candidates: (weight bits, activation bits) each layer may take.
        """
        tables = [self.of(name, pair) for name, pair in candidates.items()]
        low, high = (sum(float(end(t)) for t in tables) for end in (np.min, np.max))
        return self.constant + low, self.constant + high

    def is_fixed(self, candidates: Candidates) -> bool:
        """Whether all policies of a space cost the same."""
        return all(np.ptp(self.of(n, pair)) == 0 for n, pair in candidates.items())

    def sides(self) -> tuple[bool, bool]:
        """Whether some cost depends on weight bits, and on activation bits."""
        tables = [np.asarray(rows) for rows in self._rows.values()]
        weights, activations = (any(np.ptp(t, a).any() for t in tables) for a in (0, 1))
        return weights, activations

    def uniform(
        self, weight_bits: int, activation_bits: int, pinned: Mapping | None = None
    ) -> float:
        """Returns the cost of a uniform policy.

        Args:
            weight_bits: 2 to 8.
            activation_bits: 2 to 8.
            pinned: layer name -> bits of exceptions; None: both ends at (8, 8).
        """
        return self.cost(
            uniform_bits(self.layers, weight_bits, activation_bits, pinned)
        )


@dataclass(frozen=True)
class TableOptions:
    """What a cost table needs besides the model.

    Args:
        storage: storage of the file that will be exported, "fast", "packed" or
            "smallest"; None: "smallest" if the file's bytes are budgeted, else "fast".
        latency_table: JSON file that `gmpq-latency` wrote; None: none.
        kernel_quantizer: kernel quantizer of the search, a key of `KERNEL_QUANTIZERS`;
            None: uniform codes.
        class_names: class names of the file; (): names of nine letters are assumed.
    """

    storage: str | None = None
    latency_table: str | None = None
    kernel_quantizer: str | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.storage not in (None, *STORAGES):
            raise BudgetError(
                f"storage must be one of {', '.join(STORAGES)}. "
                f"Received: storage={self.storage!r}. "
                f"{suggest(str(self.storage), STORAGES)}"
            )

    def for_budgets(self, budgets: Iterable[Budget]) -> TableOptions:
        """Returns the options with a storage, chosen by the budgets if it is None."""
        sized = any(each.resource == FILE_BYTES for each in budgets)
        chosen = self.storage or ("smallest" if sized else "fast")
        return replace(self, storage=chosen)


Builder = Callable[[Any, TableOptions], CostTable]


def bit_ops_table(
    macs: Mapping[str, int], float_ops: float = 0, full: float | None = None
) -> CostTable:
    """Returns the table of bit operations, `macs * weight bits * activation bits`.

    Args:
        macs: multiply-adds of each layer.
        float_ops: bit operations of layers that stay float.
        full: bit operations at 32 x 32 bits; None: computed from the others.
    """
    products = np.outer(ALL_BITS, ALL_BITS)
    if full is None:
        wide = FULL_PRECISION_BITS, FULL_PRECISION_BITS
        full = float_ops + sum(bit_ops(m, *wide) for m in macs.values())
    note = f"Layers that stay float take {float_ops / 1e9:.4g} GBOPs of it."
    return CostTable(
        BIT_OPS,
        "bit operations",
        {name: count * products for name, count in macs.items()},
        float_ops,
        full,
        note if float_ops else "",
    )


def _bit_ops(model: Any, options: TableOptions) -> CostTable:
    return bit_ops_table(layer_macs(model), float_bit_ops(model))


def _weight_bytes(model: Any, options: TableOptions) -> CostTable:
    """Kernels at their bits, `ceil(bits * weights / 8)`; other parameters at 32."""
    layers = zip(searchable_names(model), searchable_layers(model), strict=True)
    sizes = {name: kernel_size(layer) for name, layer in layers}
    params = sum(math.prod(weight.shape) for weight in model.weights)
    other = 4 * (params - sum(sizes.values()))
    columns = {
        name: [[-(-bits * size // 8)] * len(ALL_BITS) for bits in ALL_BITS]
        for name, size in sizes.items()
    }
    note = "It counts bits, which a file may store in wider containers: see file_bytes."
    return CostTable("weight_bytes", "bytes", columns, other, 4 * params, note)


# A row given as text, "module:function", is imported when it is used, because it needs
# TensorFlow.
COST_TABLES: dict[str, Builder | str] = {
    BIT_OPS: _bit_ops,
    "weight_bytes": _weight_bytes,
    FILE_BYTES: "gmpq_tf.export.tflite.file_cost:file_bytes",
    "latency_ms": "gmpq_tf.latency_cost:latency_ms",
    "activation_bytes": "gmpq_tf.export.tflite.memory_cost:activation_bytes",
}


def cost_table(
    resource: str, model: Any, options: TableOptions | None = None
) -> CostTable:
    """Returns the cost table of a resource.

    Args:
        resource: a key of `COST_TABLES`.
        model: a built functional Keras model.
        options: what the table needs besides the model.

    Raises:
        BudgetError: there is no such resource, or a needed option is missing.
    """
    if resource not in COST_TABLES:
        raise BudgetError(
            f"A resource must be one of {', '.join(COST_TABLES)}. "
            f"Received: resource={resource!r}. {suggest(str(resource), COST_TABLES)}"
        )
    builder = COST_TABLES[resource]
    if isinstance(builder, str):
        module, _, name = builder.partition(":")
        builder = getattr(importlib.import_module(module), name)
    return builder(model, options or TableOptions())


def _pair(bits: LayerBits | tuple[int, int]) -> tuple[int, int]:
    if isinstance(bits, LayerBits):
        return bits.weight_bits, bits.activation_bits
    return bits
