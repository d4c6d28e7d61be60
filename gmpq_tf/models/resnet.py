"""ResNets of basic blocks (He et al., CVPR 2016, arXiv:1512.03385)."""

from typing import Any

import keras
from keras import layers

from gmpq_tf.models.blocks import batch_norm, conv, head, is_small, relu


def resnet8(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
) -> keras.Model:
    """Build the ResNet-8 of MLPerf Tiny (Banbury et al., arXiv:2106.07597).

    As there, convolutions have a bias and shortcuts no batch normalization, so that its
    published weights fit layer for layer.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn_relu(inputs, 16, 3, 1, "stem", use_bias=True)
    for stage, filters in enumerate((16, 32, 64), 1):
        strides = 1 if stage == 1 else 2
        name = f"stage{stage}_block1"
        x = _block(x, filters, strides, name, use_bias=True, shortcut_bn=False)
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="resnet8")


def resnet18(
    input_shape: tuple[int, int, int],
    num_classes: int,
    stem: str = "auto",
    classifier_activation: str | None = None,
) -> keras.Model:
    """Build ResNet-18.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        stem: `"imagenet"` (7x7 convolution and pool, both stride 2), `"cifar"` (3x3,
            stride 1, no pool) or `"auto"`: `"cifar"` below 64 pixels.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    if is_small(input_shape, stem):
        x = _conv_bn_relu(inputs, 64, 3, 1, "stem")
    else:
        x = _conv_bn_relu(inputs, 64, 7, 2, "stem")
        x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    x = _stages(x, widths=(64, 128, 256, 512), blocks=2)
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="resnet18")


def resnet20(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
) -> keras.Model:
    """Build ResNet-20 for CIFAR (section 4.2), with 1x1 convolutions as shortcuts.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn_relu(inputs, 16, 3, 1, "stem")
    x = _stages(x, widths=(16, 32, 64), blocks=3)
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="resnet20")


def _stages(x: Any, widths: tuple[int, ...], blocks: int) -> Any:
    for stage, filters in enumerate(widths, 1):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(x, filters, strides, f"stage{stage}_block{block}")
    return x


def _block(
    x: Any,
    filters: int,
    strides: int,
    name: str,
    use_bias: bool = False,
    shortcut_bn: bool = True,
) -> Any:
    """Apply a basic block: two 3x3 convolutions beside a shortcut."""
    y = _conv_bn_relu(x, filters, 3, strides, name, "1", use_bias)
    y = conv(y, filters, 3, 1, f"{name}_conv2", use_bias)
    y = batch_norm(y, f"{name}_bn2")
    if strides != 1 or x.shape[-1] != filters:
        x = conv(x, filters, 1, strides, f"{name}_shortcut", use_bias)
        x = batch_norm(x, f"{name}_shortcut_bn") if shortcut_bn else x
    x = layers.Add(name=f"{name}_add")([x, y])
    return relu(x, f"{name}_relu2")


def _conv_bn_relu(
    x: Any,
    filters: int,
    kernel: int,
    strides: int,
    name: str,
    number: str = "",
    use_bias: bool = False,
) -> Any:
    x = conv(x, filters, kernel, strides, f"{name}_conv{number}", use_bias)
    x = batch_norm(x, f"{name}_bn{number}")
    return relu(x, f"{name}_relu{number}")
