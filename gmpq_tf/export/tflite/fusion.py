"""What is fused into the kernel of a layer in TFLite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gmpq_tf.export.integers.grids import Grid
from gmpq_tf.graph import Call
from gmpq_tf.transform.gates import curve
from gmpq_tf.transform.units import cap_of

FUSED = {"linear": 0, "relu": 1, "relu6": 3}  # schema.ActivationFunctionType


@dataclass(frozen=True)
class Fused:
    """What is fused into the kernel of a layer: BatchNormalization and activation.

    Args:
        batch_norm: the BatchNormalization, or None.
        activation: a key of `FUSED`.
        index: number of the Keras tensor of the result.
        cap: largest value of a ReLU that TFLite has no fused activation for, or None.
    """

    batch_norm: Any | None
    activation: str
    index: int
    cap: float | None = None


def fused_activation(name: str, grid: Grid) -> int:
    """Number of a fused activation; a plain ReLU if the grid ends below 6.

    The grid then saturates by itself. Runtimes compute `6 / step`, which would overflow
    for tiny steps.
    """
    reaches = grid.high * grid.step > 6
    return FUSED["relu" if name == "relu6" and not reaches else name]


def relu_name(call: Call) -> str:
    """Name of TFLite's fused activation for a ReLU: "linear", "relu" or "relu6".

    For other largest values it is "relu"; `Fused.cap` has the value.
    """
    if curve(call) == "linear":
        return "linear"
    return "relu6" if cap_of(call) == 6 else "relu"
