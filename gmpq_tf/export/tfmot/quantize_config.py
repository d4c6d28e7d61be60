"""TFMOT's configuration of a layer whose input and kernel a policy quantizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tfmot.fake_quantizers import InputFakeQuantizer, KernelFakeQuantizer
from gmpq_tf.kernel_kinds import KERNEL_KINDS

# Kind of layer -> name of its kernel attribute in tf_keras.
KERNEL_NAMES = {
    kind.name: kind.tf_keras_kernel
    for kind in KERNEL_KINDS.values()
    if kind.arguments is not None
}


class PolicyQuantizeConfig:
    """TFMOT's configuration of one layer of `KERNEL_KINDS`: quantize input and kernel.

    TFMOT has quantizers for weights, activations and outputs, but a policy quantizes a
    layer's input. So TFMOT is given the identity as "activation" with the input
    quantizer, and the layer's `call` is wrapped to apply the result to its input.

    Args:
        kernel_quantizer: quantizer of the kernel.
        input_quantizer: quantizer of the layer's input.
    """

    def __init__(
        self, kernel_quantizer: KernelFakeQuantizer, input_quantizer: InputFakeQuantizer
    ) -> None:
        self.kernel_quantizer = kernel_quantizer
        self.input_quantizer = input_quantizer
        self.kernel: Any = None  # float kernel; TFMOT replaces the layer's attribute

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple]:
        """The layer's kernel variable with its quantizer, as TFMOT expects it."""
        kind = quantized_kind(layer)
        self.kernel = getattr(layer, KERNEL_NAMES[kind])
        if self.kernel_quantizer.shared_axes is None:
            self.kernel_quantizer.shared_axes = KERNEL_KINDS[kind].shared_axes
        return [(self.kernel, self.kernel_quantizer)]

    def set_quantize_weights(self, layer: Any, quantize_weights: Sequence) -> None:
        """Lets the layer compute with the quantized kernel."""
        setattr(layer, KERNEL_NAMES[quantized_kind(layer)], quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple]:
        """The identity with the input quantizer (see the class)."""
        return [(linear, self.input_quantizer)]

    def set_quantize_activations(
        self, layer: Any, quantize_activations: Sequence
    ) -> None:
        """Lets the layer's `call` quantize its input first."""
        compute, quantize = type(layer).call, quantize_activations[0]

        def call(inputs: Any) -> Any:
            return compute(layer, quantize(inputs))

        layer.call = call

    def get_output_quantizers(self, layer: Any) -> list:
        """An empty list: outputs are quantized by the layers that read them."""
        return []

    def get_config(self) -> dict[str, Any]:
        return {
            "kernel_quantizer": self.kernel_quantizer.get_config(),
            "input_quantizer": self.input_quantizer.get_config(),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PolicyQuantizeConfig:
        return cls(
            KernelFakeQuantizer.from_config(config["kernel_quantizer"]),
            InputFakeQuantizer.from_config(config["input_quantizer"]),
        )


def linear(x: Any) -> Any:
    """The identity, of any shape, under a name that TFMOT accepts as an activation."""
    return x


def quantized_kind(layer: Any) -> str:
    """Kind of a tf_keras layer that a policy can quantize.

    Raises:
        ExportError: the layer is of another kind.
    """
    kind = type(layer).__name__
    if kind not in KERNEL_NAMES:
        raise ExportError(
            f"A policy quantizes {', '.join(KERNEL_NAMES)}. "
            f"Received: layer={layer.name!r} of kind {kind}. Annotate other layers "
            "with TFMOT's own configurations."
        )
    return kind
