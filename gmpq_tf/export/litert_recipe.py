"""Recipes with which the LiteRT quantizer makes a file of the same policy and codes.

`litert-quantizer` reads a float `.tflite` and a recipe: a list of rules, each with a
regular expression for the names of output tensors, an operator, an algorithm and a
configuration. It supports fewer policies than `export_tflite`; measured with release
0.11.0:

    weights   stored as       by
    2         INT4, or INT2   recovery; INT2 for Dense with dynamic activations only,
                              because INT2 convolutions return NaN
    3, 4      INT4            recovery
    5 to 8    INT8            recovery, or the largest weight where that is 127 steps

Recovery ("dequantized_weight_recovery") takes the smallest difference between the
absolute weights of a channel as its step, so a channel needs two codes that differ by
one. It does not support depthwise convolutions, whose codes are right only if every
channel reaches the code 127 (or has only codes -1, 0, 1). Activations have 8 bits or
are float. A kernel with one step per tensor (Dense without BatchNormalization) is
recovered as a whole.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.float_model import (
    FloatKernel,
    FoldedAway,
    float_graph,
    float_tflite,
)
from gmpq_tf.export.integers.layouts import stored_layout
from gmpq_tf.export.tflite.flatbuffer import read_model
from gmpq_tf.files import write_json
from gmpq_tf.graph import Call, Graph, is_identity, is_searchable, read_graph
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layer_kinds import Role
from gmpq_tf.policy import BitwidthPolicy, LayerBits, PolicyError
from gmpq_tf.quantizers.grid import symmetric_limit
from gmpq_tf.spelling import suggest

ACTIVATIONS = ("static", "dynamic", "float")
ACTIVATION_BITS = 8  # the only integer width below 16 that the tool supports
RECOVERY = "dequantized_weight_recovery"
MIN_MAX = "min_max_uniform_quantize"
OTHER_KIND = "a kind of layer that is not tried with it"
OTHER_ACTIVATIONS = "activations of other than 8 bits"
ZERO_CHANNEL = "a channel of zeros, by whose step the tool divides its bias"
# These stay float with static activations: inputs, outputs, and final activations.
FLOAT_OPERATIONS = ("INPUT", "OUTPUT", "SOFTMAX", "LOGISTIC")


def recipe(
    model: keras.Model,
    policy: BitwidthPolicy,
    activations: str = "static",
    float_file: bytes | None = None,
) -> list[dict[str, Any]]:
    """Rules that make the LiteRT quantizer store the codes that were trained.

    Each layer has a rule of its own, for the name of the tensor it writes in the float
    file. That file comes first, because only it knows the names:

        content = float_tflite(student)
        rules = recipe(student, policy, float_file=content)
        quantizer = litert_quantizer.quantizer.Quantizer(bytearray(content), rules)

    Args:
        model: the fine-tuned student from `gmpq_tf.quantize_model`.
        policy: the policy it was made with.
        activations: "static": 8 bits, with ranges from the tool's own calibration
            (pass it one large batch, since it averages over calls); "dynamic": 8 bits,
            with ranges measured in every call; "float": only kernels are quantized,
            whatever the policy's activation bits.
        float_file: the result of `float_tflite(model)`; None: it is made again.

    Returns:
        The rules as plain JSON values.

    Raises:
        ExportError: the tool cannot express bits or codes of some layers, which are
            listed with the reasons; or the policy is for another model.
    """
    _check_activations(activations)
    graph, kernels = float_graph(model)
    _check_policy(policy, model)
    unsaid = [k.name for k in kernels if not KERNEL_KINDS[k.kind].in_recipes]
    if unsaid:
        raise ExportError(_refusal(policy, dict.fromkeys(unsaid, OTHER_KIND)))
    content = float_tflite(model) if float_file is None else float_file
    scopes, missing = _scopes(kernels, content)
    rules, reasons = [], _reasons(missing, graph)
    for kernel, scope in scopes:
        bits = policy[kernel.name]
        rule = layer_rule(kernel, bits, activations, scope)
        if isinstance(rule, str):
            reasons[kernel.name] = rule
        else:
            rules.append(rule)
    if reasons:
        raise ExportError(_refusal(policy, reasons))
    return [*_base_rules(activations), *rules]


def write_recipe(
    path: str | os.PathLike[str], rules: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes a recipe as the JSON file that the tool loads, atomically.

    Args:
        path: the file to create or to replace.
        rules: the result of `recipe`.

    Returns:
        The path written.

    Raises:
        ExportError: the path cannot be written.
    """
    try:
        return write_json(path, list(rules))
    except OSError as error:
        raise ExportError(
            "The path must be writable. "
            f"Received: path={str(path)!r} ({error}). Choose another folder."
        ) from error


def layer_rule(
    kernel: FloatKernel, bits: LayerBits, activations: str, scope: str
) -> dict[str, Any] | str:
    """The rule of one layer, or the reason why there is none.

    Args:
        kernel: the layer's kernel in the float file.
        bits: bits of the layer in the policy.
        activations: "static", "dynamic" or "float".
        scope: name of the tensor that the layer's operator writes.
    """
    if activations != "float" and bits.activation_bits != ACTIVATION_BITS:
        return OTHER_ACTIVATIONS
    if activations == "static" and has_constant_channel(kernel):
        return ZERO_CHANNEL
    stored = stored_bits(kernel.kind, bits.weight_bits, activations)
    algorithm = exact_algorithm(kernel, stored)
    if algorithm is None and KERNEL_KINDS[kernel.kind].depthwise:
        return "depthwise kernels, kept only where each channel reaches code 127"
    if algorithm is None:
        return "a channel without two codes one apart, so that its step is not seen"
    return {
        # The tool appends a semicolon to the names that it matches.
        "regex": f"^{re.escape(scope)};$",
        "operation": KERNEL_KINDS[kernel.kind].operator,
        "algorithm_key": algorithm,
        "op_config": op_config(stored, activations, kernel.per_tensor),
    }


def _reasons(missing: Sequence[str], graph: Graph) -> dict[str, str]:
    """Why kernels are not in the float file: a constant behind them was folded in.

    Args:
        missing: names of their layers.
        graph: as from `float_graph`.

    Raises:
        ExportError: nothing explains it; the file may be of another model.
    """
    scaled = {call.name: _scaling(call, graph) for call in graph.calls}
    found = {
        name: f"the converter multiplies it by the constant of {scaled[name]!r}"
        for name in missing
        if scaled.get(name)
    }
    unknown = [name for name in missing if name not in found]
    if unknown:
        raise ExportError(
            "Every kernel must be in the float file as it was trained. "
            f"Received: float_file without those of layers={unknown}. Pass what "
            "float_tflite(model) returned for this model; if it was, use "
            "gmpq_tf.export.tflite.export_tflite, which needs no converter."
        )
    return found


def _scaling(call: Call, graph: Graph) -> str | None:
    """Name of the call that multiplies a call's result by a constant; None: none."""
    consumers = graph.consumers()
    readers = consumers[call.outputs[0]]
    while len(readers) == 1 and _passes(readers[0]):
        readers = consumers[readers[0].outputs[0]]
    return next((c.name for c in readers if _scales(c)), None)


def _passes(call: Call) -> bool:
    return isinstance(call.layer, FoldedAway) or is_identity(call)


def _scales(call: Call) -> bool:
    return len(call.inputs) == 1 and call.role in (Role.SCALING, Role.PRODUCT)


def has_constant_channel(kernel: FloatKernel) -> bool:
    """Whether a channel has a bias but only zero weights."""
    columns = KERNEL_KINDS[kernel.kind].columns(kernel.codes)
    return bool(np.any(~columns.any(axis=0) & (kernel.bias != 0)))


def stored_bits(kind: str, weight_bits: int, activations: str) -> int:
    """Bits of the type in which the tool stores a kernel: 2, 4 or 8."""
    row = KERNEL_KINDS[kind]
    if row.depthwise or weight_bits > 4:
        return 8
    dense = row.operator == "FULLY_CONNECTED"
    return 2 if weight_bits == 2 and dense and activations == "dynamic" else 4


def exact_algorithm(kernel: FloatKernel, stored: int) -> str | None:
    """Name of the tool's algorithm that reproduces a kernel exactly; else None."""
    groups = kernel.groups
    if not KERNEL_KINDS[kernel.kind].depthwise and all(map(is_recovered, groups)):
        return RECOVERY
    limit = 2 ** (stored - 1) - 1
    whole = all(limit % largest == 0 for largest in groups.max(axis=1) if largest)
    return MIN_MAX if whole else None


def is_recovered(codes: np.ndarray) -> bool:
    """Whether the smallest difference of absolute codes (and 0) divides all codes.

    Args:
        codes: absolute codes of one channel, integers [n].
    """
    gaps = np.diff(np.unique(np.append(codes, 0)))
    return gaps.size == 0 or int(gaps.min()) == math.gcd(*codes.tolist())


def op_config(
    stored: int, activations: str, per_tensor: bool = False
) -> dict[str, Any]:
    """The tool's configuration of an operator with kernels of 2, 4 or 8 stored bits."""
    granularity = "TENSORWISE" if per_tensor else "CHANNELWISE"
    config: dict[str, Any] = {
        "weight_tensor_config": _tensor_config(stored, True, granularity),
        "compute_precision": "FLOAT" if activations == "float" else "INTEGER",
        "explicit_dequantize": activations == "float",
    }
    if activations == "static":
        activation = _tensor_config(ACTIVATION_BITS, False, "TENSORWISE")
        config["activation_tensor_config"] = activation
    return config


def _tensor_config(bits: int, symmetric: bool, granularity: str) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "symmetric": symmetric,
        "granularity": granularity,
        "dtype": "INT",
    }


def _base_rules(activations: str) -> list[dict[str, Any]]:
    """Rules for operators without kernels; those of the layers follow them."""
    if activations != "static":
        return []
    every = {"regex": ".*", "operation": "*", "algorithm_key": MIN_MAX}
    rules = [{**every, "op_config": op_config(8, "static")}]
    for operation in FLOAT_OPERATIONS:
        rule = {"operation": operation, "algorithm_key": "no_quantize"}
        rules.append({"regex": ".*", **rule, "op_config": {}})
    return rules


def _scopes(
    kernels: Sequence[FloatKernel], content: bytes
) -> tuple[list[tuple[FloatKernel, str]], list[str]]:
    """Each kernel with the name of the tensor that its operator writes.

    Kernels are found by their values, since the converter fuses names, drops some, and
    names the last tensor after the function.

    Returns:
        The pairs, and names of the layers whose kernels are not in the file.
    """
    operators = list(_weighted_operators(content))
    found, missing = [], []
    for kernel in kernels:
        wanted, _ = stored_layout(kernel.kind, kernel.kernel)
        equal = [o for o in operators if _is_of(o, kernel.kind, wanted)]
        if not equal:
            missing.append(kernel.name)
            continue
        # Layers with equal kernels are distinguished by their names.
        named = [o for o in equal if kernel.name in re.split(r"[/;]|_\d+[/;]", o[1])]
        operator = (named or equal)[0]
        operators.remove(operator)
        found.append((kernel, operator[1]))
    return found, missing


def _is_of(operator: tuple, kind: str, wanted: np.ndarray) -> bool:
    code, _, values = operator
    same = code == KERNEL_KINDS[kind].operator and values.shape == wanted.shape
    return same and np.array_equal(values, wanted)


def _weighted_operators(content: bytes) -> Iterator[tuple[str, str, np.ndarray]]:
    """(operator, name of its output, float kernel) for each constant kernel."""
    operators = {kind.operator for kind in KERNEL_KINDS.values()}
    names = {
        value: name
        for name, value in vars(schema.BuiltinOperator).items()
        if name in operators
    }
    model = read_model(content)
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            if number not in names:
                continue
            tensor = graph.tensors[operator.inputs[1]]
            data = model.buffers[tensor.buffer].data
            if data is not None and tensor.type == schema.TensorType.FLOAT32:
                values = np.asarray(data, np.uint8).view(np.float32)
                name = graph.tensors[operator.outputs[0]].name.decode()
                yield names[number], name, values.reshape(tensor.shape)


def _check_activations(activations: str) -> None:
    if activations not in ACTIVATIONS:
        raise ExportError(
            f"activations must be one of {', '.join(ACTIVATIONS)}. "
            f"Received: activations={activations!r}. "
            f"{suggest(str(activations), ACTIVATIONS)}"
        )


def _check_policy(policy: BitwidthPolicy, model: keras.Model) -> None:
    layers = {call.name: call.layer for call in read_graph(model).calls}
    layers = {name: layer for name, layer in layers.items() if is_searchable(layer)}
    try:
        policy.check(layers)
    except PolicyError as error:
        raise ExportError(str(error)) from error
    for name, layer in layers.items():
        trained = (layer.kernel_quantizer.bits[0], layer.input_quantizer.bits[0])
        bits = (policy[name].weight_bits, policy[name].activation_bits)
        if bits != trained:
            raise ExportError(
                "The policy must be the one the model was made with. "
                f"Received: {name}={bits} in the policy, {trained} in the model. "
                "Pass the policy given to gmpq_tf.quantize_model."
            )
        if layer.kernel_quantizer.largest_code() != symmetric_limit(bits[0]):
            raise ExportError(
                "A recipe rounds kernels to whole numbers of steps. "
                f"Received: layer={name!r} with "
                f"kernel_quantizer={layer.kernel_quantizer.method!r}, whose codes are "
                "others. Export with gmpq_tf.export.tflite, which stores its codes."
            )


def _refusal(policy: BitwidthPolicy, reasons: Mapping[str, str]) -> str:
    listed = []
    for reason in dict.fromkeys(reasons.values()):
        layers = [
            f"{name} W{policy[name].weight_bits}/A{policy[name].activation_bits}"
            for name, why in reasons.items()
            if why == reason
        ]
        listed.append(f"{', '.join(layers)} ({reason})")
    kernels_fit = {OTHER_ACTIVATIONS, ZERO_CHANNEL}.issuperset(reasons.values())
    hint = ", or activations='float' for kernels only" if kernels_fit else ""
    return (
        "The LiteRT quantizer must be able to express every layer. "
        f"Received: policy={policy.model!r} with {'; '.join(listed)}. Use "
        "gmpq_tf.export.tflite.export_tflite, which writes every policy exactly"
        f"{hint}."
    )
