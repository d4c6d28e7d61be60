"""The size of a `.tflite` file: the cost table `file_bytes`.

Everything except the kernels is measured once, by writing the file with 8-bit kernels;
then the table has what other storage types of each kernel change.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from gmpq_tf.bits import MIN_BITS, PolicyError
from gmpq_tf.budget import FILE_BYTES, BudgetError
from gmpq_tf.cost_tables import ALL_BITS, CostTable, TableOptions
from gmpq_tf.detection.region_layers import region_search_of
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Grid, Value, quantization
from gmpq_tf.export.tflite.convolutions import container
from gmpq_tf.export.tflite.flatbuffer import (
    PACKING,
    FileBuilder,
)
from gmpq_tf.export.tflite.lines import image_window
from gmpq_tf.export.tflite.lowering import Lowered, lower
from gmpq_tf.export.tflite.metadata import Facts, facts
from gmpq_tf.export.tflite.patches import lower_patches
from gmpq_tf.graph import Call, Graph, GraphError, is_searchable, searchable_names
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers.grid import symmetric_limit
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.transform.calibrate import input_quantizers
from gmpq_tf.transform.quantize import quantize_model

ALIGNMENT = 16  # bytes, of every buffer in a file
OPERATORS_BYTES = 64  # for the operator codes of dense layers in INT4 and INT2
SEED = 0
SAMPLES = 4  # number of random policies whose files are written


def file_bytes(model: keras.Model, options: TableOptions) -> CostTable:
    """Returns the cost table of the bytes of an exported file.

    Some layers need an operator that requantizes their input; which ones depends on
    ranges that training will find. How many bytes that may take is measured on files
    with random policies and ranges. (A layer whose input is dead may have to stay INT8,
    which cannot be known before.) The metadata that `gmpq-export` writes are included,
    with class names of nine letters.

    Args:
        model: the float model.
        options: storage, kernel quantizer and class names; storage None: "fast".

    Raises:
        BudgetError: the model cannot be exported.
    """
    storage = options.storage or "fast"
    codes = largest_codes(options.kernel_quantizer)
    lowered = lowered_once(model, options)
    patches, shared = _patch_bytes(lowered.graph, storage)
    sizes: dict[str, np.ndarray] = {}
    for call in lowered.graph.calls:
        if is_searchable(call.layer) and call.name not in sizes:
            column = _kernel_bytes(call, storage, patches, codes)
            sizes[call.name] = np.repeat(column[:, None], len(ALL_BITS), axis=1)
    kernels = sum(float(table[-1, -1]) for table in sizes.values())
    constant = len(lowered.content) - kernels
    packed = any(np.ptp(table) for table in sizes.values())
    note = f"It is the size of the file in storage {storage!r}."
    if not packed:
        note += " No kernel of it becomes smaller with fewer bits" + (
            ", which 'packed' and 'smallest' may change." if storage == "fast" else "."
        )
    params = sum(int(np.prod(weight.shape)) for weight in model.weights)
    layers = {name: sizes[name] for name in searchable_names(model)}
    constant += packed * (shared + OPERATORS_BYTES)
    table = CostTable(FILE_BYTES, "bytes", layers, constant, 4 * params, note)
    return replace(table, constant=constant + _margin(model, table, options))


def _margin(model: keras.Model, table: CostTable, options: TableOptions) -> float:
    """A safety margin: how many bytes files of random policies exceed the table.

    Half of the spread is added, for policies that were not drawn.
    """
    found = [
        len(lowered.content) - table.cost(policy)
        for policy, lowered in samples(model, options)
    ]
    return max(0.0, max(found) + float(np.ptp(found)) / 2)


def samples(
    model: keras.Model, options: TableOptions, batch: int | None = None
) -> Iterator[tuple[BitwidthPolicy, Lowered]]:
    """Yields random policies with their files, whose ranges are random too.

    Args:
        model: the float model.
        options: storage, kernel quantizer and class names of the files.
        batch: batch size of the files; None: any.

    Raises:
        BudgetError: the model cannot be exported.
    """
    codes = largest_codes(options.kernel_quantizer)
    widths = [bits for bits in ALL_BITS if codes[bits] is not None]
    rng = np.random.default_rng(SEED)
    for seed in range(SAMPLES):
        bits = {
            name: (int(rng.choice(widths)), int(rng.choice(ALL_BITS)))
            for name in searchable_names(model)
        }
        policy = BitwidthPolicy(model.name, bits, {})
        yield policy, lowered_once(model, options, policy, seed, batch)


def largest_codes(kernel_quantizer: str | None) -> dict[int, int | None]:
    """Returns the largest code of each bit-width; None: the quantizer does not have it.

    Args:
        kernel_quantizer: a name in `KERNEL_QUANTIZERS`; None: the default.
    """
    row = kernel_method(kernel_quantizer or DEFAULT_KERNEL_QUANTIZER)
    found: dict[int, int | None] = dict.fromkeys(ALL_BITS)
    for bits in ALL_BITS:
        with contextlib.suppress(PolicyError):
            found[bits] = row.largest_code(bits)
    return found


def lowered_once(
    model: keras.Model,
    options: TableOptions | None = None,
    policy: BitwidthPolicy | None = None,
    seed: int = SEED,
    batch: int | None = None,
) -> Lowered:
    """Returns a file of the untrained model in which no constants are shared.

    Ranges, biases and statistics are made different from each other, as after training;
    equal ones would be stored only once.

    Args:
        model: the float model.
        options: storage, kernel quantizer and class names of the file.
        policy: bits of the layers; None: kernels of 8 bits, inputs of 2 bits.
        seed: seed of the ranges and statistics.
        batch: batch size of the file; None: any.

    Raises:
        BudgetError: the model cannot be exported.
    """
    if region_search_of(model) is not None:
        raise BudgetError(
            "A budget of the file or its memory needs a model that becomes one file. "
            f"Received: model={model.name!r}, a detector of two stages, which becomes "
            "two. Budget bit operations, such as W4A4, or weight_bytes=60kB."
        )
    options = options or TableOptions()
    storage, quantizer = options.storage or "fast", options.kernel_quantizer
    if policy is None:
        policy = BitwidthPolicy.uniform(model, ALL_BITS[-1], MIN_BITS, {})
        storage, quantizer = "fast", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            student = quantize_model(
                model,
                policy,
                kernel_quantizer=quantizer or DEFAULT_KERNEL_QUANTIZER,
            )
            _make_different(student, np.random.default_rng(seed))
            names, known = _class_names(student, options.class_names)
            layers = {name: [8, 8] for name in policy}
            metadata = {
                "input_scaling": {"kind": "standardized", "mean": [0.485, 0.456, 0.406],
                                  "std": [0.229, 0.224, 0.225]},
                "class_names": names,
                "policy": {"model": model.name, "layers": layers},
            }  # fmt: skip
            return lower(student, storage, metadata=metadata, known=known, batch=batch)
    except (ExportError, GraphError) as error:
        raise BudgetError(
            "A budget of the file or its memory needs a model that can be exported. "
            f"Received: model={model.name!r}: {error} What a file with layers in float "
            "takes is not known beforehand: budget bit operations, such as W4A4, or "
            "weight_bytes=60kB."
        ) from error


def _class_names(
    student: keras.Model, given: tuple[str, ...]
) -> tuple[list[str], Facts]:
    """Class names for the JSON metadata, and facts for the standard metadata."""
    widths = {o.shape[-1] for o in student.outputs if len(o.shape) == 2 and o.shape[-1]}
    if given:
        return list(given), facts(given if len(given) in widths else None)
    names = [f"class {i:03d}" for i in range(min(widths, default=0))]
    return names, facts(names if len(widths) == 1 else None)


def _make_different(student: keras.Model, rng: np.random.Generator) -> None:
    """Makes every vector and every range different, in place."""
    for quantizer in input_quantizers(student):
        for branch, bits in enumerate(quantizer.bits):
            step = rng.uniform(1, 8) / 2**bits
            if quantizer.power_of_two:
                step = 2.0 ** np.round(np.log2(step))
            quantizer.set_branch(branch, step)
    for variable in student.weights:
        if len(variable.shape) == 1 and variable.dtype == "float32":
            name = variable.path.rpartition("/")[2]
            if name in ("bias", "beta", "moving_mean", "gamma"):
                noise = rng.uniform(0.01, 0.02, variable.shape)
                variable.assign(np.asarray(variable) + noise.astype("float32"))


def _kernel_bytes(
    call: Call,
    storage: str,
    patches: Mapping[str, int],
    codes: Mapping[int, int | None],
) -> np.ndarray:
    """Bytes of a kernel and the operators its storage needs, for 2 to 8 bits, [7]."""
    widest = symmetric_limit(ALL_BITS[-1])  # for widths that the quantizer lacks
    found = [widest if code is None else code for code in map(codes.get, ALL_BITS)]
    return np.array([_with_codes(call, storage, code, patches) for code in found])


def _with_codes(call: Call, storage: str, code: int, patches: Mapping[str, int]) -> int:
    stored = container(storage, code, call)
    data = PACKING[stored.type](np.zeros(stored.shape, np.int8))
    size = -(-len(data) // ALIGNMENT) * ALIGNMENT
    if stored.type != "INT8":
        size += ALIGNMENT
    return size + (patches[call.name] if stored.kind != call.kind else 0)


def _patch_bytes(graph: Graph, storage: str) -> tuple[dict[str, int], int]:
    """Bytes of the operators that lay out patches.

    Returns:
        Layer name -> bytes for this layer alone, and the bytes that all layers share.
    """
    fewest = symmetric_limit(MIN_BITS)
    calls = {
        call.name: call
        for call in graph.calls
        if is_searchable(call.layer)
        and container(storage, fewest, call).kind != call.kind
    }
    everything = _with_patches(calls.values(), graph, storage)
    alone = {
        name: everything
        - _with_patches([c for c in calls.values() if c is not call], graph, storage)
        for name, call in calls.items()
    }
    nothing = _with_patches([], graph, storage)
    return alone, everything - nothing - sum(alone.values())


def _with_patches(calls: Iterable[Call], graph: Graph, storage: str) -> int:
    """Size of a file that only lays out the patches of some convolutions, in bytes."""
    file, grid = FileBuilder(), Grid(1.0, 0, 255)
    net: Any = SimpleNamespace(file=file, batch=None, storage=storage)
    source = Value(file.tensor("x", (1,), "INT8", quantization(grid)), grid, 0)
    for call in calls:
        layer, before, after = image_window(graph, call)
        lower_patches(net, source, before, after, layer)
    return len(file.finish({"x": source.tensor}, {"y": source.tensor}, {}))
