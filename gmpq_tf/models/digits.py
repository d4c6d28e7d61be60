"""Two small networks for 8x8 digits: all kinds of layers, and inverted residuals."""

from typing import Any

import keras
from keras import layers

from gmpq_tf.models.blocks import batch_norm, conv, depthwise, head, relu


def digits_cnn(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds six convolutions, among them a residual block and a depthwise pair.

    Args:
        input_shape: Height, width, channels; such as (8, 8, 1), which leaves a last
            feature map of 4x4.
        num_classes: Number of outputs.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = relu(batch_norm(conv(inputs, 16, 3, 1, "stem_conv"), "stem_bn"), "stem_relu")
    y = conv(x, 16, 3, 1, "stage1_conv1")
    y = relu(batch_norm(y, "stage1_bn1"), "stage1_relu1")
    y = batch_norm(conv(y, 16, 3, 1, "stage1_conv2"), "stage1_bn2")
    x = relu(layers.Add(name="stage1_add")([x, y]), "stage1_relu2")
    x = batch_norm(depthwise(x, 2, "stage2_depthwise"), "stage2_depthwise_bn")
    x = relu(x, "stage2_depthwise_relu")
    x = batch_norm(conv(x, 32, 1, 1, "stage2_pointwise"), "stage2_pointwise_bn")
    x = relu(x, "stage2_pointwise_relu")
    x = relu(batch_norm(conv(x, 48, 3, 1, "stage3_conv"), "stage3_bn"), "stage3_relu")
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="digits_cnn")


def digits_mobilenet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds three inverted residuals, whose layers differ in sensitivity to rounding.

    Args:
        input_shape: Height, width, channels; such as (8, 8, 1), which leaves a last
            feature map of 4x4.
        num_classes: Number of outputs.
        classifier_activation: None for logits, or such as `"softmax"`.

    Source: the blocks of MobileNetV2 (Sandler et al., CVPR 2018) with expansion 4.
    """
    inputs = keras.Input(input_shape, name="image")
    x = relu(batch_norm(conv(inputs, 32, 3, 1, "stem_conv"), "stem_bn"), "stem_relu")
    x = _inverted_residual(x, 32, 1, "block1")
    x = _inverted_residual(x, 48, 2, "block2")
    x = _inverted_residual(x, 48, 1, "block3")
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="digits_mobilenet")


def _inverted_residual(x: Any, channels: int, strides: int, name: str) -> Any:
    """Applies 1x1, depthwise 3x3 and 1x1 convolution, and a skip if shapes agree."""
    y = conv(x, 4 * x.shape[-1], 1, 1, f"{name}_expand")
    y = relu(batch_norm(y, f"{name}_expand_bn"), f"{name}_expand_relu")
    y = depthwise(y, strides, f"{name}_depthwise")
    y = relu(batch_norm(y, f"{name}_depthwise_bn"), f"{name}_depthwise_relu")
    y = batch_norm(conv(y, channels, 1, 1, f"{name}_project"), f"{name}_project_bn")
    same = strides == 1 and channels == x.shape[-1]
    return layers.Add(name=f"{name}_add")([x, y]) if same else y
