"""Layers with kernels that policies do not cover: they stay float, at 32 x 32 bits.

Like `graph` this module imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from gmpq_tf.budget import FULL_PRECISION_BITS, bit_ops
from gmpq_tf.graph import Call, Graph, Ref, is_searchable, layer_kind, read_graph
from gmpq_tf.layer_kinds import kind_of

Shapes = Sequence[tuple]


@dataclass(frozen=True)
class FloatLayer:
    """One layer that computes with kernels, or products of tensors, in float.

    Args:
        name: the layer's name.
        kind: its class.
        macs: multiply-adds for one example, over all calls; None: there is no formula
            for its kind, or a size is not fixed.
        params: number of all its weights.
        input_elements: activations that it reads for one example, over all calls.
    """

    name: str
    kind: str
    macs: int | None
    params: int
    input_elements: int

    def __str__(self) -> str:
        count = "not counted" if self.macs is None else f"{self.macs:,} MACs"
        return f"{self.name} ({self.kind}, {count})"


def float_layers(model_or_graph: Any) -> tuple[FloatLayer, ...]:
    """The layers of a model that compute in float, in graph order.

    Args:
        model_or_graph: a built functional model, or what `read_graph` returned.
    """
    is_graph = isinstance(model_or_graph, Graph)
    graph = model_or_graph if is_graph else read_graph(model_or_graph)
    uses: dict[int, list[Call]] = {}
    for call in graph.calls:
        if not is_searchable(call.layer) and _computes(call.layer):
            uses.setdefault(id(call.layer), []).append(call)
    return tuple(_counted(graph, calls) for calls in uses.values())


def float_bit_ops(model: Any) -> int:
    """Bit operations of the layers that stay float, at 32 x 32 bits."""
    macs = sum(layer.macs or 0 for layer in float_layers(model))
    return int(bit_ops(macs, FULL_PRECISION_BITS, FULL_PRECISION_BITS))


def uncounted(layers: Sequence[FloatLayer]) -> tuple[str, ...]:
    """Names of the layers whose multiply-adds are not known."""
    return tuple(layer.name for layer in layers if layer.macs is None)


def warn_uncounted(layers: Sequence[FloatLayer]) -> None:
    """Names in one warning the layers that costs and budgets leave out."""
    found = [str(layer) for layer in layers if layer.macs is None]
    if found:
        warnings.warn(
            "The multiply-adds of these layers are not known and are left out of every "
            f"cost and budget: {', '.join(found)}. Write them with layers of Keras, "
            "and give the model's Input a fixed size.",
            stacklevel=3,
        )


def _counted(graph: Graph, calls: list[Call]) -> FloatLayer:
    layer, counts = calls[0].layer, []
    elements = 0
    for call in calls:
        inputs = [graph.shapes[i] for i in call.inputs]
        operands, output = _operands(graph, call), graph.shapes[call.outputs[0]]
        counts.append(_macs(layer, operands, output))
        elements += sum(math.prod(d or 0 for d in shape[1:]) for shape in inputs)
    known = [count for count in counts if count is not None]
    macs = sum(known) if len(known) == len(counts) else None
    params = sum(math.prod(w.shape) for w in getattr(layer, "weights", []))
    return FloatLayer(calls[0].name, calls[0].kind, macs, params, elements)


def _operands(graph: Graph, call: Call) -> list[tuple]:
    """Shapes of tensors and constants among a call's arguments, in their order.

    Masks, which nothing is multiplied by, are left out.
    """
    given = inspect.signature(call.layer.call).bind(*call.args, **call.kwargs)
    values = [v for name, v in given.arguments.items() if "mask" not in name]
    return [
        graph.shapes[v.index] if isinstance(v, Ref) else tuple(v.shape)
        for v in _leaves(values)
        if isinstance(v, Ref) or hasattr(v, "shape")
    ]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _computes(layer: Any) -> bool:
    """Whether a layer multiplies by kernels, or tensors with each other."""
    if _formula(layer) is not None:
        return True
    if kind_of(layer_kind(layer)).elementwise:
        return False
    return any(len(weight.shape) > 1 for weight in getattr(layer, "weights", []))


def _formula(layer: Any) -> Callable[..., int | None] | None:
    """The formula of a layer: that of the first Keras class among its bases."""
    for cls in type(layer).__mro__:
        if cls.__module__.split(".")[0] == "keras" and cls.__name__ in FORMULAS:
            return FORMULAS[cls.__name__]
    return None


def _macs(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    formula = _formula(layer)
    if formula is None or any(None in s[1:] for s in (*inputs, output)):
        return None
    return formula(layer, inputs, output)


def _positions(layer: Any, shape: tuple) -> int:
    first = getattr(layer, "data_format", None) == "channels_first"
    return math.prod(shape[2:] if first else shape[1:-1])


def _size(weight: Any) -> int:
    return math.prod(weight.shape)


def _convolution(layer: Any, inputs: Shapes, output: tuple) -> int:
    """`positions of the output * kernel weights`."""
    return _positions(layer, output) * _size(layer.kernel)


def _transposed(layer: Any, inputs: Shapes, output: tuple) -> int:
    """`positions of the input * kernel weights`: each pixel is spread by the kernel."""
    return _positions(layer, inputs[0]) * _size(layer.kernel)


def _separable(layer: Any, inputs: Shapes, output: tuple) -> int:
    weights = _size(layer.depthwise_kernel) + _size(layer.pointwise_kernel)
    return _positions(layer, output) * weights


def _einsum_dense(layer: Any, inputs: Shapes, output: tuple) -> int:
    """`outputs * product of the kernel's axes that are summed over`."""
    operands, result = layer.equation.replace(" ", "").split("->")
    names = zip(operands.split(",")[1], layer.kernel.shape, strict=True)
    return math.prod(output[1:]) * math.prod(s for n, s in names if n not in result)


def _attention_heads(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    """Projections of queries, keys, values and results, and both matrix products."""
    config = layer.get_config()
    if config.get("attention_axes") not in (None, [1], (1,)) or len(inputs[0]) != 3:
        return None
    heads, wide = config["num_heads"], config["key_dim"]
    deep = config["value_dim"] or wide
    query, value = inputs[0], inputs[1]
    key = inputs[2] if len(inputs) > 2 else value
    long, short = query[1], value[1]
    projections = long * query[2] * wide + short * (key[2] * wide + value[2] * deep)
    products = long * short * (wide + deep)
    return heads * (projections + products + long * deep * output[-1])


def _attention(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    """`queries * values * (size of a query + size of a value)`."""
    (_, long, wide), (_, short, deep) = inputs[0], inputs[1]
    return long * short * (wide + deep)


def _recurrent(layer: Any, inputs: Shapes, output: tuple) -> int:
    """`steps * (kernel weights + recurrent weights)`."""
    cell = layer.cell
    return inputs[0][1] * (_size(cell.kernel) + _size(cell.recurrent_kernel))


def _both_ways(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    parts = [_macs(part, inputs, output) for part in _directions(layer)]
    return None if None in parts else sum(part or 0 for part in parts)


def _directions(layer: Any) -> tuple:
    return layer.forward_layer, layer.backward_layer


def _each_step(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    inner = [(s[0], *s[2:]) for s in (*inputs, output)]
    count = _macs(layer.layer, inner[:-1], inner[-1])
    return None if count is None else inputs[0][1] * count


def _inner(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    return _macs(layer.layer, inputs, output)


def _product(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    """`outputs * size of the axis that is summed over`, of two arrays."""
    if len(inputs) != 2:  # a constant may be a list
        return None
    axes = getattr(layer, "axes", -1)  # of the layer Dot
    axis = axes if isinstance(axes, int) else axes[0]
    return math.prod(output[1:]) * inputs[0][axis]


def _einsum(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    """Product of the sizes of all axes but the batch; 0 for a single operand."""
    operands, arrow, result = layer.subscripts.replace(" ", "").partition("->")
    names = operands.split(",")
    if len(names) == 1:
        return 0
    if len(names) != len(inputs) or len(names) > 2 or not arrow or "." in operands:
        return None
    sizes = dict(zip(operands.replace(",", ""), chain(*inputs), strict=True))
    return math.prod(size for name, size in sizes.items() if name != result[:1])


def _with_kernel(layer: Any, inputs: Shapes, output: tuple) -> int | None:
    """`positions * kernel weights`, of an operation that is given its kernel."""
    if len(inputs) != 2:
        return None
    places = inputs[0] if "Transpose" in type(layer).__name__ else output
    return _positions(layer, places) * math.prod(inputs[1])


FORMULAS: dict[str, Callable[..., int | None]] = {
    **dict.fromkeys(
        "Conv1D Conv2D Conv3D DepthwiseConv1D DepthwiseConv2D Dense".split(),
        _convolution,
    ),
    **dict.fromkeys(
        "Conv1DTranspose Conv2DTranspose Conv3DTranspose".split(), _transposed
    ),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
    "EinsumDense": _einsum_dense,
    "MultiHeadAttention": _attention_heads,
    "Attention": _attention,
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), _recurrent),
    "Bidirectional": _both_ways,
    "TimeDistributed": _each_step,
    "SpectralNormalization": _inner,
    "Embedding": lambda layer, inputs, output: 0,  # looks rows up
    **dict.fromkeys(("MatMul", "Matmul", "Dot"), _product),
    "Einsum": _einsum,
    **dict.fromkeys(("Conv", "DepthwiseConv", "ConvTranspose"), _with_kernel),
    # They have no formula, so a warning names them.
    **dict.fromkeys(
        ("Tensordot", "Inner", "Vdot", "SeparableConv"),
        lambda layer, inputs, output: None,
    ),
}
