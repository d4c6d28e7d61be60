"""Which layers CMSIS-NN can compute from packed INT4 kernels, two codes a byte.

This is read from the sources of CMSIS-NN (https://github.com/ARM-software/CMSIS-NN):
its table of operators; `arm_convolve_wrapper_s4` (V.1.2.1, February 2026) and
`arm_convolve_s4`, which reads all input channels in every window, so that it has no
groups; `arm_depthwise_conv_wrapper_s4` (V.1.0.0, October 2023);
`arm_fully_connected_s4`. All of them unpack codes while they multiply, so no unpacked
copy of the kernel is needed. The kernels of TFLite Micro for CMSIS-NN
(`kernels/cmsis_nn/conv.cc` and its neighbours, 2024) call them for filters of type
INT4. Nothing here was run on such a processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmpq_tf.export.tflite.flatbuffer import operator_name, read_model, stored_bytes
from gmpq_tf.export.tflite.lowering import Lowered

LARGEST = 7  # largest code of INT4
# Operator of TFLite -> function of CMSIS-NN.
FUNCTIONS = {
    "CONV_2D": "arm_convolve_wrapper_s4",
    "DEPTHWISE_CONV_2D": "arm_depthwise_conv_wrapper_s4",
    "FULLY_CONNECTED": "arm_fully_connected_s4",
}


@dataclass(frozen=True)
class Int4:
    """Whether CMSIS-NN computes a layer from packed INT4.

    Args:
        layer: name of the layer.
        function: function of CMSIS-NN; None: it has none for this layer.
        why: the reason why not; "" if it can.
        bytes: bytes of the kernel in the file, in INT8.
        packed_bytes: bytes of the kernel in INT4; in INT8 if it cannot be packed.
    """

    layer: str
    function: str | None
    why: str
    bytes: int
    packed_bytes: int


def int4_kernels(lowered: Lowered) -> tuple[Int4, ...]:
    """One row per layer with a kernel, in the order of the file.

    Args:
        lowered: a file with INT8 kernels.
    """
    model = read_model(lowered.content)
    readers = {
        int(operator.inputs[1]): operator
        for operator in model.subgraphs[0].operators
        if operator_name(model, operator) in (*FUNCTIONS, "TRANSPOSE_CONV")
    }
    return tuple(
        _row(model, readers[k.tensor], k.name, k.tensor, k.layer)
        for k in lowered.kernels
    )


def _row(model: Any, operator: Any, name: str, tensor: int, layer: Any) -> Int4:
    function = FUNCTIONS.get(operator_name(model, operator))
    why = _obstacle(model, operator, function, layer.kernel_quantizer.largest_code())
    size = stored_bytes(model, tensor)
    return Int4(
        name, None if why else function, why, size, size if why else -(-size // 2)
    )


def _obstacle(model: Any, operator: Any, function: str | None, largest: int) -> str:
    if largest > LARGEST:
        return f"its codes reach {largest}, those of INT4 {LARGEST}"
    if function is None:
        return f"there is no {operator_name(model, operator)} of INT4"
    tensors = model.subgraphs[0].tensors
    if operator_name(model, operator) == "CONV_2D":
        channels = [int(tensors[i].shape[-1]) for i in operator.inputs[:2]]
        if channels[0] != channels[1]:
            return f"{function} knows no groups"
    return ""
