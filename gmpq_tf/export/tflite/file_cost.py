"""What a `.tflite` file will take: the tables `file_bytes` and `activation_bytes`.

All but the kernels is measured, by writing the file once with 8-bit kernels; the rest
is what containers of fewer bits change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from gmpq_tf.bits import MIN_BITS, PolicyError
from gmpq_tf.budget import FILE_BYTES, BudgetError
from gmpq_tf.cost_tables import ALL_BITS, CostTable, TableOptions
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Grid, Value, quantization
from gmpq_tf.export.tflite.convolutions import container
from gmpq_tf.export.tflite.flatbuffer import (
    PACKING,
    FileBuilder,
    read_model,
    tensor_type,
)
from gmpq_tf.export.tflite.lowering import Lowered, lower
from gmpq_tf.export.tflite.metadata import facts
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

ALIGNMENT = 16  # of every buffer in a file
OPERATORS_BYTES = 64  # that dense layers of INT4 and INT2 are new kinds of operators
SEED = 0


def file_bytes(model: keras.Model, options: TableOptions) -> CostTable:
    """Returns the table of what an exported file holds.

    Never below the size of the file but where it cannot be known before training: a
    layer with a dead input may have to stay INT8. Space for the metadata that
    `gmpq-export` writes, with names of classes of nine letters, is included.

    Args:
        model: the float model.
        options: whose storage counts; None: "fast".

    Raises:
        BudgetError: the model cannot be exported.
    """
    storage = options.storage or "fast"
    row = kernel_method(options.kernel_quantizer or DEFAULT_KERNEL_QUANTIZER)

    def largest_code(bits: int) -> int:
        try:
            return row.largest_code(bits)
        except PolicyError:  # a width that the quantizer, and so its policies, have not
            return symmetric_limit(ALL_BITS[-1])

    lowered = lowered_once(model)
    patches, shared = _patch_bytes(lowered.graph, storage)
    sizes: dict[str, np.ndarray] = {}
    for call in lowered.graph.calls:
        if is_searchable(call.layer) and call.name not in sizes:
            column = _kernel_bytes(call, storage, patches, largest_code)
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
    return CostTable(FILE_BYTES, "bytes", layers, constant, 4 * params, note)


def activation_bytes(model: keras.Model, options: TableOptions) -> CostTable:
    """Returns the table of the activations that a file needs in memory at once.

    The largest sum of the tensors that are alive while an operator runs, for one
    example, in the order of the file: what no planner can do with less. Files hold
    activations in eight bits, so that no policy changes it. Where a storage lays out
    patches for packed kernels the policy that needs most is counted.

    Args:
        model: the float model.
        options: whose storage counts; None: "fast".

    Raises:
        BudgetError: the model cannot be exported.
    """
    storage = options.storage or "fast"
    files = [lowered_once(model)]
    if storage != "fast":
        files.append(
            lowered_once(
                model, BitwidthPolicy.uniform(model, MIN_BITS, MIN_BITS, {}), storage
            )
        )
    peak = max(peak_bytes(each.content) for each in files)
    zeros = np.zeros((len(ALL_BITS),) * 2)
    note = "Files hold activations in eight bits, whatever the policy says."
    layers = dict.fromkeys(searchable_names(model), zeros)
    return CostTable("activation_bytes", "bytes", layers, peak, None, note)


def peak_bytes(content: bytes) -> int:
    """Returns the most bytes of computed tensors alive at once, for one example.

    Args:
        content: of a `.tflite` file.
    """
    model = read_model(content)
    graph = model.subgraphs[0]
    last: dict[int, int] = {}
    for number, operator in enumerate(graph.operators):
        last.update(dict.fromkeys(operator.inputs, number))
    last.update(dict.fromkeys(graph.outputs, len(graph.operators)))
    alive, most = set(map(int, graph.inputs)), 0
    for number, operator in enumerate(graph.operators):
        alive |= set(map(int, operator.outputs))
        most = max(most, sum(_size(model, tensor) for tensor in alive))
        alive = {tensor for tensor in alive if last.get(tensor, -1) > number}
    return most


def _size(model: Any, number: int) -> int:
    wide = tensor_type(model, number) in ("FLOAT32", "INT32")
    shape = model.subgraphs[0].tensors[number].shape
    return int(np.prod(shape)) * (4 if wide else 1)


def lowered_once(
    model: keras.Model,
    policy: BitwidthPolicy | None = None,
    storage: str = "fast",
    seed: int = SEED,
) -> Lowered:
    """Returns the file of a model, made so that nothing is shared.

    Ranges, biases and statistics differ from each other, as after training: equal ones
    would be stored once.

    Args:
        model: the float model.
        policy: bits of its layers; None: kernels of 8, inputs of 2.
        storage: of the file.
        seed: of the ranges and statistics.

    Raises:
        BudgetError: the model cannot be exported.
    """
    if policy is None:
        policy = BitwidthPolicy.uniform(model, ALL_BITS[-1], MIN_BITS, {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            student = quantize_model(model, policy)
            _make_different(student, np.random.default_rng(seed))
            widths = {shape[-1] for shape in map(tuple, _output_shapes(student))}
            names = [f"class {i:03d}" for i in range(min(widths, default=0) or 0)]
            layers = {name: [8, 8] for name in policy}
            metadata = {
                "input_scaling": {"kind": "standardized", "mean": [0.485, 0.456, 0.406],
                                  "std": [0.229, 0.224, 0.225]},
                "class_names": names,
                "policy": {"model": model.name, "layers": layers},
            }  # fmt: skip
            known = facts(names if len(widths) == 1 else None)
            return lower(student, storage, metadata=metadata, known=known)
    except (ExportError, GraphError) as error:
        raise BudgetError(
            "A budget of the file or its memory needs a model that can be exported. "
            f"Received: model={model.name!r}: {error}"
        ) from error


def _output_shapes(model: keras.Model) -> Iterable[tuple]:
    return [o.shape for o in model.outputs if len(o.shape) == 2 and o.shape[-1]]


def _make_different(student: keras.Model, rng: np.random.Generator) -> None:
    """Gives every vector and every range values of its own."""
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
    largest_code: Callable[[int], int],
) -> np.ndarray:
    """Bytes that a kernel takes with what its container needs, at 2 to 8 bits, [7]."""
    codes = map(largest_code, ALL_BITS)
    return np.array([_with_codes(call, storage, each, patches) for each in codes])


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
        Layer name -> what it alone needs, and what several of them share.
    """
    fewest = symmetric_limit(MIN_BITS)
    calls = {
        call.name: call
        for call in graph.calls
        if is_searchable(call.layer)
        and container(storage, fewest, call).kind != call.kind
    }
    everything = _with_patches(calls.values(), graph)
    alone = {
        name: everything
        - _with_patches([c for c in calls.values() if c is not call], graph)
        for name, call in calls.items()
    }
    nothing = _with_patches([], graph)
    return alone, everything - nothing - sum(alone.values())


def _with_patches(calls: Iterable[Call], graph: Graph) -> int:
    """Bytes of a file that lays out the patches of some convolutions."""
    file, grid = FileBuilder(), Grid(1.0, 0, 255)
    net: Any = SimpleNamespace(file=file, batch=None)
    source = Value(file.tensor("x", (1,), "INT8", quantization(grid)), grid, 0)
    for call in calls:
        before, after = (graph.shapes[i] for i in (call.inputs[0], call.outputs[0]))
        lower_patches(net, source, before, after, call.layer)
    return len(file.finish({"x": source.tensor}, {"y": source.tensor}, {}))
