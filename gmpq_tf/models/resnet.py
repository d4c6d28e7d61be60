"""ResNets of basic and of bottleneck blocks (He et al., CVPR 2016, arXiv:1512.03385).

With `stem="imagenet"` ResNet-18 and ResNet-50 compute the same as torchvision's and
keras.applications' (padding and epsilon included), so that published weights fit.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from gmpq_tf.models.blocks import (
    BATCH_NORM_EPSILON,
    batch_norm,
    conv,
    head,
    is_small,
    relu,
)

_IMAGENET_EPSILON = 1e-5  # torchvision's; keras.applications has 1.001e-5.
_IMAGENET_WIDTHS = (64, 128, 256, 512)
_CIFAR_WIDTHS = (16, 32, 64)


def resnet8(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds the ResNet-8 of MLPerf Tiny (Banbury et al., arXiv:2106.07597).

    As in the original, convolutions have a bias and shortcuts no batch normalization,
    so that its published weights fit layer for layer.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = resnet8_features(inputs)[-1]
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="resnet8")


def resnet8_features(x: Any, stem_strides: int = 1) -> list[Any]:
    """Applies the convolutions of ResNet-8.

    Args:
        x: Images `[batch, height, width, channels]`.
        stem_strides: Stride of the first convolution.

    Returns:
        The feature map at the end of each of the three stages, `[batch, height, width,
        channels]`.
    """
    x = _conv_bn_relu(x, 16, 3, stem_strides, "stem", use_bias=True)
    block = functools.partial(_block, use_bias=True, shortcut_bn=False)
    return _stages(x, _CIFAR_WIDTHS, (1, 1, 1), block)


def resnet20_features(x: Any, stem_strides: int = 1) -> list[Any]:
    """Applies the convolutions of ResNet-20; as `resnet8_features`."""
    x = _conv_bn_relu(x, 16, 3, stem_strides, "stem")
    return _stages(x, _CIFAR_WIDTHS, (3, 3, 3), _block)


def resnet18(
    input_shape: tuple[int, int, int],
    num_classes: int,
    stem: str = "auto",
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds ResNet-18.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        stem: `"imagenet"` (7x7 convolution and pool, both stride 2), `"cifar"` (3x3,
            stride 1, no pool) or `"auto"`: `"cifar"` below 64 pixels.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    x, style = _stem(inputs, stem)
    block = functools.partial(_block, **style)
    x = _stages(x, _IMAGENET_WIDTHS, (2, 2, 2, 2), block)[-1]
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="resnet18")


def resnet18_features(x: Any, stem: str = "auto", alpha: float = 1.0) -> list[Any]:
    """Applies the stem and the first three stages of ResNet-18.

    Args:
        x: Images `[batch, height, width, channels]`.
        stem: As for `resnet18`.
        alpha: Width multiplier, above 0.

    Returns:
        The feature map at the end of each of the three stages.
    """
    widths = _widths(alpha)
    x, style = _stem(x, stem, widths[0])
    block = functools.partial(_block, **style)
    return _stages(x, widths[:3], (2, 2, 2), block)


def resnet18_last_stage(x: Any, alpha: float = 1.0) -> Any:
    """Applies the fourth stage of ResNet-18, padded as for photographs.

    Args:
        x: Features `[batch, height, width, channels]`.
        alpha: Width multiplier, above 0.

    Returns:
        Its feature map, of half the size.
    """
    block = functools.partial(_block, symmetric=True, epsilon=_IMAGENET_EPSILON)
    return _stages(x, _widths(alpha)[3:], (2,), block, first=4)[-1]


def _widths(alpha: float) -> tuple[int, ...]:
    return tuple(max(1, round(alpha * width)) for width in _IMAGENET_WIDTHS)


def resnet20(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds ResNet-20 for CIFAR (section 4.2), with 1x1 convolutions as shortcuts.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    return _cifar(input_shape, num_classes, 3, classifier_activation, "resnet20")


def resnet56(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds ResNet-56 for CIFAR (section 4.2), with 1x1 convolutions as shortcuts.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    return _cifar(input_shape, num_classes, 9, classifier_activation, "resnet56")


def resnet50(
    input_shape: tuple[int, int, int],
    num_classes: int,
    stem: str = "auto",
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds ResNet-50 as published: the first 1x1 convolution of a block has stride 2.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        stem: As for `resnet18`.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    outputs = _resnet50(inputs, num_classes, stem, classifier_activation, _bottleneck)
    return keras.Model(inputs, outputs, name="resnet50")


def resnet50_v1_5(
    input_shape: tuple[int, int, int],
    num_classes: int,
    stem: str = "auto",
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds torchvision's ResNet-50 (v1.5): the 3x3 convolution has the stride of 2.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        stem: As for `resnet18`.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    block = functools.partial(_bottleneck, shrink_in_3x3=True)
    outputs = _resnet50(inputs, num_classes, stem, classifier_activation, block)
    return keras.Model(inputs, outputs, name="resnet50_v1_5")


def _cifar(
    input_shape: tuple[int, int, int],
    num_classes: int,
    blocks: int,
    activation: str | None,
    name: str,
) -> keras.Model:
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn_relu(inputs, 16, 3, 1, "stem")
    x = _stages(x, _CIFAR_WIDTHS, (blocks,) * 3, _block)[-1]
    return keras.Model(inputs, head(x, num_classes, activation), name=name)


def _resnet50(
    inputs: Any,
    num_classes: int,
    stem: str,
    activation: str | None,
    block: Callable[..., Any],
) -> Any:
    x, style = _stem(inputs, stem)
    block = functools.partial(block, **style)
    x = _stages(x, _IMAGENET_WIDTHS, (3, 4, 6, 3), block)[-1]
    return head(x, num_classes, activation)


def _stem(
    inputs: Any, stem: str, filters: int = _IMAGENET_WIDTHS[0]
) -> tuple[Any, dict[str, Any]]:
    """Applies the first layers; also returns the blocks' padding and epsilon.

    For small images there are no published weights to match, so the blocks pad with
    `same`, which needs no padding layers.
    """
    if is_small(tuple(inputs.shape[1:]), stem):
        return _conv_bn_relu(inputs, filters, 3, 1, "stem"), {}
    style: dict[str, Any] = {"symmetric": True, "epsilon": _IMAGENET_EPSILON}
    x = _conv_bn_relu(inputs, filters, 7, 2, "stem", **style)
    # After a ReLU, padding a maximum pool with zeros equals padding with -infinity.
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    return layers.MaxPooling2D(3, 2, name="stem_pool")(x), style


def _stages(
    x: Any,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    block: Callable[..., Any],
    first: int = 1,
) -> list[Any]:
    """Applies stages of blocks; returns the feature map at the end of each stage."""
    maps = []
    for stage, (filters, count) in enumerate(zip(widths, blocks, strict=True), first):
        for number in range(1, count + 1):
            strides = 2 if stage > 1 and number == 1 else 1
            x = block(x, filters, strides, f"stage{stage}_block{number}")
        maps.append(x)
    return maps


def _block(
    x: Any,
    filters: int,
    strides: int,
    name: str,
    use_bias: bool = False,
    shortcut_bn: bool = True,
    symmetric: bool = False,
    epsilon: float = BATCH_NORM_EPSILON,
) -> Any:
    """Applies a basic block: two 3x3 convolutions beside a shortcut."""
    y = _conv_bn_relu(x, filters, 3, strides, name, "1", use_bias, symmetric, epsilon)
    y = conv(y, filters, 3, 1, f"{name}_conv2", use_bias)
    y = batch_norm(y, f"{name}_bn2", epsilon)
    if strides != 1 or x.shape[-1] != filters:
        x = conv(x, filters, 1, strides, f"{name}_shortcut", use_bias)
        x = batch_norm(x, f"{name}_shortcut_bn", epsilon) if shortcut_bn else x
    x = layers.Add(name=f"{name}_add")([x, y])
    return relu(x, f"{name}_relu2")


def _bottleneck(
    x: Any,
    filters: int,
    strides: int,
    name: str,
    shrink_in_3x3: bool = False,
    symmetric: bool = False,
    epsilon: float = BATCH_NORM_EPSILON,
) -> Any:
    """Applies a bottleneck block: 1x1, 3x3 and 1x1 convolution beside a shortcut."""
    first, second = (1, strides) if shrink_in_3x3 else (strides, 1)
    style: dict[str, Any] = {"symmetric": symmetric, "epsilon": epsilon}
    y = _conv_bn_relu(x, filters, 1, first, name, "1", **style)
    y = _conv_bn_relu(y, filters, 3, second, name, "2", **style)
    y = conv(y, 4 * filters, 1, 1, f"{name}_conv3")
    y = batch_norm(y, f"{name}_bn3", epsilon)
    if strides != 1 or x.shape[-1] != 4 * filters:
        x = conv(x, 4 * filters, 1, strides, f"{name}_shortcut")
        x = batch_norm(x, f"{name}_shortcut_bn", epsilon)
    x = layers.Add(name=f"{name}_add")([x, y])
    return relu(x, f"{name}_relu3")


def _conv_bn_relu(
    x: Any,
    filters: int,
    kernel: int,
    strides: int,
    name: str,
    number: str = "",
    use_bias: bool = False,
    symmetric: bool = False,
    epsilon: float = BATCH_NORM_EPSILON,
) -> Any:
    x = conv(x, filters, kernel, strides, f"{name}_conv{number}", use_bias, symmetric)
    x = batch_norm(x, f"{name}_bn{number}", epsilon)
    return relu(x, f"{name}_relu{number}")
