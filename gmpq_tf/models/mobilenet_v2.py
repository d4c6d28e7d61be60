"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv:1801.04381)."""

from typing import Any

import keras
from keras import layers

from gmpq_tf.models.blocks import batch_norm, conv, depthwise, head, is_small, relu

# Expansion, channels, blocks, stride of the first: table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    input_shape: tuple[int, int, int],
    num_classes: int,
    alpha: float = 1.0,
    stem: str = "auto",
    classifier_activation: str | None = None,
    padding: str = "same",
) -> keras.Model:
    """Builds MobileNetV2.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of outputs.
        alpha: Width multiplier, above 0.
        stem: `"imagenet"`, `"cifar"` (stem and second stage keep the size of the
            image) or `"auto"`: `"cifar"` below 64 pixels.
        classifier_activation: None for logits, or such as `"softmax"`.
        padding: Of convolutions of stride 2: `"same"`, as in keras.applications, or
            `"symmetric"`, as in torchvision. They differ at even sizes, and the
            weights of one lose accuracy with the other.

    Raises:
        ValueError: There is no such stem or padding.
    """
    symmetric = _is_symmetric(padding)
    shrink = 1 if is_small(input_shape, stem) else 2
    inputs = keras.Input(input_shape, name="image")
    x = conv(inputs, _channels(32 * alpha), 3, shrink, "stem_conv", symmetric=symmetric)
    x = _bn_relu6(x, "stem")
    for stage, (expansion, width, blocks, strides) in enumerate(STAGES, 1):
        first = shrink if stage == 2 else strides
        for block in range(1, blocks + 1):
            name = f"stage{stage}_block{block}"
            step = first if block == 1 else 1
            x = _block(x, expansion, _channels(width * alpha), step, name, symmetric)
    x = conv(x, _channels(1280 * max(alpha, 1.0)), 1, 1, "head_conv")
    x = _bn_relu6(x, "head")
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="mobilenet_v2")


def _block(
    x: Any, expansion: int, filters: int, strides: int, name: str, symmetric: bool
) -> Any:
    """Applies an inverted residual: expand, filter depthwise, project."""
    y, channels = x, x.shape[-1]
    if expansion != 1:
        y = conv(y, expansion * channels, 1, 1, f"{name}_expand")
        y = _bn_relu6(y, f"{name}_expand")
    y = depthwise(y, strides, f"{name}_depthwise", symmetric)
    y = _bn_relu6(y, f"{name}_depthwise")
    y = conv(y, filters, 1, 1, f"{name}_project")
    y = batch_norm(y, f"{name}_project_bn")
    if strides != 1 or channels != filters:
        return y
    return layers.Add(name=f"{name}_add")([x, y])


def _bn_relu6(x: Any, name: str) -> Any:
    return relu(batch_norm(x, f"{name}_bn"), f"{name}_relu", max_value=6.0)


def _is_symmetric(padding: str) -> bool:
    if padding not in ("same", "symmetric"):
        raise ValueError(
            "`padding` must be 'same' or 'symmetric'. "
            f"Received: padding={padding!r}. Use 'same' for weights of Keras."
        )
    return padding == "symmetric"


def _channels(channels: float) -> int:
    """Rounds to a multiple of 8, by no more than 10 % down."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
