"""The layers of `KERNEL_KINDS` with quantizers on input and kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from gmpq_tf.bits import LayerPair
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer
from gmpq_tf.quantizers.observing import observers_now
from gmpq_tf.quantizers.recompute import keeping_arguments
from gmpq_tf.quantizers.straight_through import round_half_even


class Quantized(keras.layers.Layer):
    """Mix-in of the quantized layers, whose second base class is the Keras layer.

    Args:
        input_quantizer: `InputQuantizer`, or None to leave activations float.
        kernel_quantizer: `KernelQuantizer`, or None to leave the kernel float.
    """

    kernel: keras.Variable  # this and the next two are the stock layer's
    bias: keras.Variable | None
    activation: Callable[[tf.Tensor], tf.Tensor] | None

    searchable_kind = ""
    shared_axes: tuple[int, ...] = ()
    recomputes = False  # whether training uses `_recomputed_product`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Sets `shared_axes` from the kind that the class stands for."""
        super().__init_subclass__(**kwargs)
        if cls.searchable_kind:
            cls.shared_axes = KERNEL_KINDS[cls.searchable_kind].shared_axes

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
        """Builds the stock layer, then its quantizers."""
        super().build(input_shape)
        for quantizer, shape in (
            (self.input_quantizer, input_shape),
            (self.kernel_quantizer, self.kernel.shape),
        ):
            if quantizer is not None and not quantizer.built:  # loading builds them
                quantizer.build(shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.finish(*self.product(inputs, training))

    def product(
        self, inputs: tf.Tensor, training: bool | None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Product [B, ..., C] of the quantized operands, and its unit [C] or None.

        See `operands` for the unit.
        """
        if training and self.input_quantizer is not None:
            self.input_quantizer.check_calibrated()
        if training and self.recomputes and self._quantizes_both():
            return self._recomputed_product(inputs), None
        x, kernel, unit = self.operands(inputs, training)
        return self.multiply(x, kernel), unit

    def multiply(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Product [B, ..., C] of an input and a kernel, without bias."""
        raise NotImplementedError

    def _recomputed_product(self, inputs: tf.Tensor) -> tf.Tensor:
        """Product [B, ..., C] that keeps only float operands for the backward pass.

        The backward pass quantizes them again, which costs one elementwise pass and
        saves the memory of a second copy of the activations.
        """
        of_x, of_w = self.input_quantizer, self.kernel_quantizer
        kernel = tf.convert_to_tensor(self.kernel)
        weights = self.branch_weights(training=True)
        # Under mixed precision operands are narrow and quantizers compute in float32.
        # `function` casts inside, so that it keeps its narrow arguments, not float32
        # copies of them.
        wide = [
            tf.cast(value, quantizer.compute_dtype)
            for value, quantizer in ((inputs, of_x), (kernel, of_w))
        ]
        x_parameters = of_x.parameters(wide[0], weights.activations, training=True)
        w_parameters = of_w.parameters(wide[1], weights.weights, training=True)
        count = len(x_parameters)

        def function(x: tf.Tensor, w: tf.Tensor, *parameters: tf.Tensor) -> tf.Tensor:
            quantized = (
                of_x.compute(tf.cast(x, of_x.compute_dtype), parameters[:count]),
                of_w.compute(tf.cast(w, of_w.compute_dtype), parameters[count:]),
            )
            return self.multiply(*(tf.cast(value, x.dtype) for value in quantized))

        return keeping_arguments(function)(inputs, kernel, *x_parameters, *w_parameters)

    def branch_weights(self, training: bool | None = None) -> LayerPair:
        """Weights of the quantizers' branches, [branches] each; None for one branch."""
        return LayerPair(weights=None, activations=None)

    def _quantizes_both(self) -> bool:
        """Whether both quantizers exist and are on (calibration switches them off)."""
        both = self.input_quantizer is not None and self.kernel_quantizer is not None
        return both and observers_now() is None

    def operands(
        self, inputs: tf.Tensor, training: bool | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """The operands that the layer multiplies: input [B, ...], kernel, and a unit.

        Outside training the operands are integer codes where possible: float32 adds
        their products without rounding, as integer kernels do, as long as sums stay
        below 2^24. The result then has to be multiplied by the unit, the product of
        both steps, [1] or [C]. In training, and in narrower floats, whose range such
        sums would leave, operands are quantized floats and the unit is None.
        """
        kernel = tf.convert_to_tensor(self.kernel)
        if observers_now() is not None:  # quantizers are off and need no weights
            if self.input_quantizer is not None:
                seen = self.input_quantizer(inputs)
                inputs = tf.cast(seen, inputs.dtype)
            return inputs, kernel, None
        weights = self.branch_weights(training)
        x = self.quantize_input(inputs, weights.activations)
        w = self.quantize_kernel(kernel, weights.weights)
        if training or x.dtype != tf.float32 or not self._is_integer():
            return x, w, None
        input_step = tf.cast(self.input_quantizer.step_tensor(), x.dtype)
        kernel_steps = tf.cast(self.kernel_quantizer.steps_tensor(kernel), x.dtype)
        unit = tf.reshape(input_step * kernel_steps, [-1])
        return _codes(x, input_step), _codes(w, kernel_steps), unit

    def finish(self, outputs: tf.Tensor, unit: tf.Tensor | None) -> tf.Tensor:
        """Applies unit, bias and activation to the product; [B, ..., C] both."""
        if unit is not None:
            outputs = outputs * self._along_channels(unit, outputs)
        if self.bias is not None:
            bias = ops.convert_to_tensor(self.bias)
            outputs = ops.add(outputs, self._along_channels(bias, outputs))
        activation = self.activation
        return outputs if activation is None else activation(outputs)

    def _along_channels(self, values: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Values [C] or [1], reshaped to broadcast against the outputs of the layer."""
        if getattr(self, "data_format", None) != "channels_first":
            return values
        return ops.reshape(values, (-1, *[1] * (len(outputs.shape) - 2)))

    def _is_integer(self) -> bool:
        """Whether both operands are codes times a step that the graph can compute."""
        x, w = self.input_quantizer, self.kernel_quantizer
        if not self._quantizes_both() or not len(x.bits) == len(w.bits) == 1:
            return False
        return x.on_grid and w.on_grid and w.is_known_to_graph

    def quantize_input(
        self, inputs: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Quantized activations, [B, ...], as the layer computes with them.

        Args:
            inputs: float activations, [B, ...].
            weights: weights of the branches, [branches]; None: those of inference.
        """
        if self.input_quantizer is None:
            return inputs
        if weights is None:
            weights = self.branch_weights().activations
        quantized = self.input_quantizer(inputs, probabilities=weights)
        return tf.cast(quantized, inputs.dtype)

    def quantize_kernel(
        self, kernel: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Quantized kernel, of the kernel's shape, as the layer computes with it.

        Args:
            kernel: float, any shape.
            weights: weights of the branches, [branches]; None: those of inference.
        """
        if self.kernel_quantizer is None:
            return kernel
        kernel = tf.convert_to_tensor(kernel)
        if weights is None:
            weights = self.branch_weights().weights
        quantized = self.kernel_quantizer(kernel, probabilities=weights)
        return tf.cast(quantized, kernel.dtype)

    def get_config(self) -> dict:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "input_quantizer": serialize(self.input_quantizer),
            "kernel_quantizer": serialize(self.kernel_quantizer),
        }


def _codes(values: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Integer codes of values on a grid; the gradient is that of the division alone."""
    return round_half_even(values * (1 / step))


def _quantizer(value: Any) -> Any:
    if isinstance(value, dict):
        return keras.saving.deserialize_keras_object(value)
    return value


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantConv2D(Quantized, keras.layers.Conv2D):
    """`conv(q_a(x), q_w(W)) + bias`, arguments as `keras.layers.Conv2D`."""

    searchable_kind = "Conv2D"
    recomputes = True

    def multiply(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return self.convolution_op(x, kernel)


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantConv1D(Quantized, keras.layers.Conv1D):
    """`conv(q_a(x), q_w(W)) + bias`, arguments as `keras.layers.Conv1D`."""

    searchable_kind = "Conv1D"
    recomputes = True

    def multiply(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolution of an input [B, T, C] and a kernel, without bias.

        Args:
            x: [batch, steps, inputs].
            kernel: [kernel steps, inputs / groups, outputs].
        """
        causal = self.padding == "causal"
        return ops.conv(
            ops.pad(x, self._compute_causal_padding()) if causal else x,
            kernel,
            strides=list(self.strides),
            padding="valid" if causal else self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


class _Depthwise(Quantized):
    """Depthwise convolutions of sequences and of images."""

    recomputes = True

    def multiply(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return ops.depthwise_conv(
            x,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantDepthwiseConv2D(_Depthwise, keras.layers.DepthwiseConv2D):
    """Depthwise convolution, arguments as `keras.layers.DepthwiseConv2D`."""

    searchable_kind = "DepthwiseConv2D"


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantDepthwiseConv1D(_Depthwise, keras.layers.DepthwiseConv1D):
    """Depthwise convolution, arguments as `keras.layers.DepthwiseConv1D`."""

    searchable_kind = "DepthwiseConv1D"


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantDense(Quantized, keras.layers.Dense):
    """`q_a(x) q_w(W) + bias`, arguments as `keras.layers.Dense`."""

    searchable_kind = "Dense"

    def multiply(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return ops.matmul(x, kernel)


class _Transposed(Quantized):
    """Transposed convolutions of sequences and of images."""

    recomputes = True

    def multiply(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Transposed convolution of an input [B, ..., C] and a kernel, without bias.

        Args:
            x: images [batch, height, width, inputs] or sequences
                [batch, steps, inputs].
            kernel: [kernel height, kernel width, outputs, inputs], or for sequences
                [kernel steps, outputs, inputs].
        """
        return ops.conv_transpose(
            x,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantConv2DTranspose(_Transposed, keras.layers.Conv2DTranspose):
    """Transposed convolution, arguments as `keras.layers.Conv2DTranspose`."""

    searchable_kind = "Conv2DTranspose"


@keras.saving.register_keras_serializable("gmpq_tf")
class QuantConv1DTranspose(_Transposed, keras.layers.Conv1DTranspose):
    """Transposed convolution, arguments as `keras.layers.Conv1DTranspose`."""

    searchable_kind = "Conv1DTranspose"


_CLASSES = (
    QuantConv2D,
    QuantConv1D,
    QuantDepthwiseConv2D,
    QuantDepthwiseConv1D,
    QuantDense,
    QuantConv2DTranspose,
    QuantConv1DTranspose,
)
QUANT_LAYERS: dict[str, Any] = {cls.searchable_kind: cls for cls in _CLASSES}
