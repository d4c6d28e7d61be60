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
        padding: Padding of convolutions of stride 2: `"same"`, as in
            keras.applications, or `"symmetric"`, as in torchvision. They differ at even
            sizes, and weights trained with one lose accuracy with the other.

    Raises:
        ValueError: There is no such stem or padding.
    """
    inputs = keras.Input(input_shape, name="image")
    shrink = 1 if is_small(input_shape, stem) else 2
    x = mobilenet_v2_features(inputs, alpha, shrink, padding)[-1]
    outputs = head(x, num_classes, classifier_activation)
    return keras.Model(inputs, outputs, name="mobilenet_v2")


def mobilenet_v2_features(
    x: Any, alpha: float = 1.0, shrink: int = 2, padding: str = "same"
) -> list[Any]:
    """Applies the convolutions of MobileNetV2.

    Args:
        x: Images `[batch, height, width, channels]`.
        alpha: Width multiplier, above 0.
        shrink: Stride of the stem and of the second stage's first block.
        padding: As for `mobilenet_v2`.

    Returns:
        The feature maps that SSDLite reads (section 6.2): the expanded one inside the
        sixth stage's first block, before it is subsampled (stride 16), and the last one
        (stride 32), each `[batch, height, width, channels]`.
    """
    symmetric = _is_symmetric(padding)
    x = conv(x, _channels(32 * alpha), 3, shrink, "stem_conv", symmetric=symmetric)
    x = _bn_relu6(x, "stem")
    for stage, (expansion, width, blocks, strides) in enumerate(STAGES, 1):
        first = shrink if stage == 2 else strides
        for block in range(1, blocks + 1):
            name = f"stage{stage}_block{block}"
            step = first if block == 1 else 1
            filters = _channels(width * alpha)
            x, expanded = _block(x, expansion, filters, step, name, symmetric)
            if (stage, block) == (6, 1):
                stride16 = expanded
    x = conv(x, _channels(1280 * max(alpha, 1.0)), 1, 1, "head_conv")
    return [stride16, _bn_relu6(x, "head")]


def _block(
    x: Any, expansion: int, filters: int, strides: int, name: str, symmetric: bool
) -> tuple[Any, Any]:
    """Applies an inverted residual: expand, filter depthwise, project.

    Returns:
        The block's feature map, and the expanded one inside it.
    """
    y, channels = x, x.shape[-1]
    if expansion != 1:
        y = conv(y, expansion * channels, 1, 1, f"{name}_expand")
        y = _bn_relu6(y, f"{name}_expand")
    expanded = y
    y = depthwise(y, strides, f"{name}_depthwise", symmetric)
    y = _bn_relu6(y, f"{name}_depthwise")
    y = conv(y, filters, 1, 1, f"{name}_project")
    y = batch_norm(y, f"{name}_project_bn")
    if strides != 1 or channels != filters:
        return y, expanded
    return layers.Add(name=f"{name}_add")([x, y]), expanded


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
