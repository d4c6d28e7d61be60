"""Separable convolutions, read as the two convolutions that they compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmpq_tf.graph.calls import Call, Graph, free_name, unary_call
from gmpq_tf.graph.recognition import is_stock
from gmpq_tf.kernel_kinds import SEPARABLE_KINDS


@dataclass(frozen=True, eq=False)
class KernelPart:
    """One of the two convolutions inside a separable one, as a layer of its own.

    Args:
        source: the separable layer.
        searchable_kind: stock Keras class that computes this part.
        kernel: the source's kernel variable, in the layout of that class.
        bias: the source's bias variable, or None.
        activation: activation function, or None.
        config: configuration of that class.
    """

    source: Any
    searchable_kind: str
    kernel: Any
    bias: Any
    activation: Any
    config: dict

    @property
    def use_bias(self) -> bool:
        """Whether this part adds a bias."""
        return self.bias is not None

    @property
    def weights(self) -> list:
        """The kernel variable, and the bias variable if there is one."""
        return [self.kernel] if self.bias is None else [self.kernel, self.bias]

    def get_config(self) -> dict:
        """Configuration of the stock layer that computes this part."""
        return dict(self.config)


def separable_parts(layer: Any) -> tuple[KernelPart, KernelPart]:
    """The depthwise and the pointwise convolution that a separable one computes.

    `pointwise(depthwise(x)) + bias`; Chollet, "Xception", CVPR 2017, section 3.
    """
    config = layer.get_config()
    common = {k: config[k] for k in ("name", "trainable", "dtype", "data_format")}
    same = "kernel_size strides padding dilation_rate depth_multiplier".split()
    roles = ("initializer", "regularizer", "constraint")
    depthwise = {
        **common,
        **{key: config[key] for key in same},
        **{f"depthwise_{role}": config[f"depthwise_{role}"] for role in roles},
        "use_bias": False,
        "activation": "linear",
    }
    kept = ["filters", "activation", "use_bias", "activity_regularizer"]
    kept += [f"bias_{role}" for role in roles]
    pointwise = {
        **common,
        **{key: config[key] for key in kept},
        **{f"kernel_{role}": config[f"pointwise_{role}"] for role in roles},
        "kernel_size": (1,) * len(layer.kernel_size),
    }
    bias = layer.bias if layer.use_bias else None
    kernels = layer.depthwise_kernel, layer.pointwise_kernel
    first, second = SEPARABLE_KINDS[type(layer).__name__]
    return (
        KernelPart(layer, first, kernels[0], None, None, depthwise),
        KernelPart(layer, second, kernels[1], bias, layer.activation, pointwise),
    )


def split_separable(graph: Graph) -> None:
    """Replaces each call of a separable convolution by two calls."""
    taken = {call.name for call in graph.calls}
    parts: dict[int, list[tuple[KernelPart, str]]] = {}
    calls = []
    for call in graph.calls:
        if call.kind not in SEPARABLE_KINDS or not is_stock(call.layer):
            calls.append(call)
            continue
        if id(call.layer) not in parts:
            parts[id(call.layer)] = _named_parts(call, taken)
        (depthwise, first), (pointwise, second) = parts[id(call.layer)]
        middle = graph.new_tensor(
            _depthwise_shape(call, graph), graph.dtypes[call.outputs[0]]
        )
        calls.append(unary_call(depthwise, first, call.inputs[0], middle))
        calls.append(unary_call(pointwise, second, middle, call.outputs[0]))
    graph.calls = calls


def _named_parts(call: Call, taken: set[str]) -> list[tuple[KernelPart, str]]:
    named = []
    for part, role in zip(
        separable_parts(call.layer), ("depthwise", "pointwise"), strict=True
    ):
        name = free_name(f"{call.name}_{role}", taken)
        taken.add(name)
        named.append((part, name))
    return named


def _depthwise_shape(call: Call, graph: Graph) -> tuple:
    """Shape of the depthwise part's output."""
    shape = list(graph.shapes[call.outputs[0]])
    axis = -1 if call.layer.data_format == "channels_last" else 1
    channels = graph.shapes[call.inputs[0]][axis]
    shape[axis] = channels * call.layer.depth_multiplier
    return tuple(shape)
