"""VGG-16 (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556)."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from gmpq_tf.models.blocks import conv, relu

# Width and number of the convolutions before each pool: column D of table 1.
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_HIDDEN = 4096


def vgg16(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds VGG-16.

    As in keras.applications, and unlike in the paper, there is no dropout between the
    dense layers.

    Args:
        input_shape: Height, width, channels. The first dense layer has one input for
            each value of the last feature map, so its kernel depends on the image size.
        num_classes: Number of outputs.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    inputs = keras.Input(input_shape, name="image")
    x = _halve(vgg16_features(inputs)[-1], "stage5_pool")
    x = layers.Flatten(name="head_flatten")(x)
    for name in ("head_fc1", "head_fc2"):
        x = layers.Dense(_HIDDEN, kernel_initializer="he_normal", name=name)(x)
        x = relu(x, f"{name}_relu")
    x = layers.Dense(num_classes, activation=classifier_activation, name="head_dense")(
        x
    )
    return keras.Model(inputs, x, name="vgg16")


def vgg16_features(x: Any, halve: Callable[[Any, str], Any] | None = None) -> list[Any]:
    """Applies the 13 convolutions of VGG-16.

    Args:
        x: Images `[batch, height, width, channels]`.
        halve: Function of a feature map and a layer name that halves its sides; None:
            a 2x2 maximum pool.

    Returns:
        The feature map at the end of each of the five stages, before its pool, `[batch,
        height, width, channels]`.
    """
    maps: list[Any] = []
    for stage, (filters, convolutions) in enumerate(_STAGES, 1):
        if maps:
            x = (halve or _halve)(x, f"stage{stage - 1}_pool")
        for number in range(1, convolutions + 1):
            x = conv(x, filters, 3, 1, f"stage{stage}_conv{number}", use_bias=True)
            x = relu(x, f"stage{stage}_relu{number}")
        maps.append(x)
    return maps


def _halve(x: Any, name: str) -> Any:
    """Applies a 2x2 maximum pool; a side of one pixel stays one pixel."""
    padding = "same" if min(x.shape[1:3]) < 2 else "valid"
    return layers.MaxPooling2D(2, padding=padding, name=name)(x)
