"""The graph of a functional Keras model, with nested models inlined.

Tensors are numbered, and each use of a layer is a `Call`. Nothing here imports
TensorFlow or Keras, so that costs and policies can be computed without them.
"""

from gmpq_tf.graph.calls import (
    Call,
    Graph,
    GraphError,
    Ref,
    fill,
    free_name,
    infer,
    is_described,
    is_frozen_norm,
    is_identity,
    unary_call,
)
from gmpq_tf.graph.macs import examples, kernel_size, layer_macs, positions_of
from gmpq_tf.graph.outline import outline
from gmpq_tf.graph.reading import functional_of, has_own_call, read_graph
from gmpq_tf.graph.recognition import (
    activation_name,
    is_over_last_axis,
    is_plain_relu,
    is_searchable,
    is_stock,
    layer_kind,
    relu_cap,
)
from gmpq_tf.graph.searchable import check_float, searchable_layers, searchable_names
from gmpq_tf.graph.separable import KernelPart, separable_parts

__all__ = [
    "Call",
    "Graph",
    "GraphError",
    "KernelPart",
    "Ref",
    "activation_name",
    "check_float",
    "examples",
    "fill",
    "free_name",
    "functional_of",
    "has_own_call",
    "infer",
    "is_described",
    "is_frozen_norm",
    "is_identity",
    "is_over_last_axis",
    "is_plain_relu",
    "is_searchable",
    "is_stock",
    "kernel_size",
    "layer_kind",
    "layer_macs",
    "outline",
    "positions_of",
    "read_graph",
    "relu_cap",
    "searchable_layers",
    "searchable_names",
    "separable_parts",
    "unary_call",
]
