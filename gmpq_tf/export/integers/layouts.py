"""Checks of layers for integer files, and the layouts of their kernels."""

from __future__ import annotations

import numpy as np

from gmpq_tf.export.errors import ExportError
from gmpq_tf.graph import Call
from gmpq_tf.kernel_kinds import KERNEL_KINDS

# Activations that can be fused into a layer's operator.
FUSABLE = ("linear", "relu", "relu6")


def check_layer(call: Call) -> None:
    """Refuses layers without quantizers, or with a data layout that TFLite lacks.

    Raises:
        ExportError: the layer is one of these, or has an activation that no kernel
            fuses.
    """
    layer = call.layer
    quantizers = [getattr(layer, f"{k}_quantizer", None) for k in ("input", "kernel")]
    if None in quantizers or any(len(q.bits) != 1 for q in quantizers if q):
        raise ExportError(
            "Every convolution and dense layer must have one input quantizer and one "
            f"kernel quantizer. Received: layer={call.name!r} "
            f"({type(layer).__name__}). Export what gmpq_tf.quantize_model returned."
        )
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ExportError(
            "Channels must be last. "
            f"Received: layer={call.name!r} with data_format={layer.data_format!r}. "
            "Build the model with data_format='channels_last'."
        )
    if call.activation not in FUSABLE:
        raise ExportError(
            "An activation inside a layer must be linear, relu or relu6. "
            f"Received: layer={call.name!r} with activation={call.activation!r}. "
            "Export what gmpq_tf.quantize_model returned, which splits it off."
        )


def stored_layout(kind: str, kernel: np.ndarray) -> tuple[np.ndarray, int]:
    """A Keras kernel in TFLite's layout and shape, and its axis of output channels."""
    return KERNEL_KINDS[kind].to_file(kernel)


def keras_layout(kind: str, kernel: np.ndarray, shape: tuple) -> np.ndarray:
    """Inverse of `stored_layout`: a stored kernel in the layout and shape of Keras."""
    return KERNEL_KINDS[kind].from_file(kernel, shape)
