"""Conv2D, DepthwiseConv2D and Dense with a quantizer on the input and on the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer


class Quantized:
    """What the quantized layers add to a stock layer.

    Args:
        input_quantizer: `InputQuantizer`, or None to leave activations float.
        kernel_quantizer: `KernelQuantizer`, or None to leave the kernel float.
    """

    searchable_kind = ""
    shared_axes: tuple[int, ...] = ()

    def __init__(
        self,
        *args: Any,
        input_quantizer: InputQuantizer | dict | None = None,
        kernel_quantizer: KernelQuantizer | dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.input_quantizer = _quantizer(input_quantizer)
        self.kernel_quantizer = _quantizer(kernel_quantizer)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Build the stock layer, then its quantizers."""
        super().build(input_shape)  # type: ignore[misc]
        for quantizer, shape in (
            (self.input_quantizer, input_shape),
            (self.kernel_quantizer, self.kernel.shape),  # type: ignore[attr-defined]
        ):
            if quantizer is not None and not quantizer.built:  # loading builds them
                quantizer.build(shape)

    def quantize_input(self, inputs: tf.Tensor) -> tf.Tensor:
        """Activations as the layer computes with them."""
        if self.input_quantizer is None:
            return inputs
        return tf.cast(self.input_quantizer(inputs), inputs.dtype)

    def quantize_kernel(self, kernel: tf.Tensor) -> tf.Tensor:
        """Kernel as the layer computes with it."""
        if self.kernel_quantizer is None:
            return kernel
        kernel = tf.convert_to_tensor(kernel)
        return tf.cast(self.kernel_quantizer(kernel), kernel.dtype)

    def get_config(self) -> dict:
        """Plain JSON configuration."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),  # type: ignore[misc]
            "input_quantizer": serialize(self.input_quantizer),
            "kernel_quantizer": serialize(self.kernel_quantizer),
        }


def _quantizer(value: Any) -> Any:
    if isinstance(value, dict):
        return keras.saving.deserialize_keras_object(value)
    return value


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantConv2D(Quantized, keras.layers.Conv2D):
    """`conv(q_a(x), q_w(W)) + bias`, arguments as `keras.layers.Conv2D`."""

    searchable_kind = "Conv2D"
    shared_axes = (0, 1, 2)

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve the quantized input with the quantized kernel."""
        return super().convolution_op(
            self.quantize_input(inputs), self.quantize_kernel(kernel)
        )


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantDepthwiseConv2D(Quantized, keras.layers.DepthwiseConv2D):
    """Depthwise convolution, arguments as `keras.layers.DepthwiseConv2D`."""

    searchable_kind = "DepthwiseConv2D"
    shared_axes = (0, 1)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolve each channel of the quantized input on its own."""
        outputs = ops.depthwise_conv(
            self.quantize_input(inputs),
            self.quantize_kernel(self.kernel),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if self.use_bias:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantDense(Quantized, keras.layers.Dense):
    """`q_a(x) q_w(W) + bias`, arguments as `keras.layers.Dense`."""

    searchable_kind = "Dense"
    shared_axes = (0, 1)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Multiply the quantized input by the quantized kernel."""
        kernel = self.quantize_kernel(self.kernel)
        outputs = ops.matmul(self.quantize_input(inputs), kernel)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)
