"""The layers that all our models are made of."""

from typing import Any

from keras import layers

# With Keras's 0.99 the moving statistics would lag behind in short trainings.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-3
SMALL_IMAGE = 64  # Below this side an image network's stem must not shrink the image.


def conv(
    x: Any,
    filters: int,
    kernel: int,
    strides: int,
    name: str,
    use_bias: bool = False,
    symmetric: bool = False,
) -> Any:
    """Applies a He-initialized convolution with output size ceil(input / strides).

    Args:
        x: Feature map `[batch, height, width, channels]`.
        filters: Output channels.
        kernel: Side of the kernel, odd.
        strides: Step along both axes.
        name: Layer name.
        use_bias: Whether the layer adds a bias.
        symmetric: Pad both sides equally, as PyTorch does. TensorFlow's `same` pads the
            bottom and right more where an odd number of pixels is to be padded.
    """
    x, padding = _padded(x, kernel, strides, name, symmetric)
    return layers.Conv2D(
        filters,
        kernel,
        strides,
        padding=padding,
        use_bias=use_bias,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def depthwise(x: Any, strides: int, name: str, symmetric: bool = False) -> Any:
    """Applies a He-initialized 3x3 depthwise convolution, padded as `conv` pads."""
    x, padding = _padded(x, 3, strides, name, symmetric)
    return layers.DepthwiseConv2D(
        3,
        strides,
        padding=padding,
        use_bias=False,
        depthwise_initializer="he_normal",
        name=name,
    )(x)


def _padded(
    x: Any, kernel: int, strides: int, name: str, symmetric: bool
) -> tuple[Any, str]:
    """Returns the padded input of a convolution and its `padding` argument."""
    if not symmetric or strides == 1 or kernel == 1:
        return x, "same"
    return layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x), "valid"


def batch_norm(x: Any, name: str, epsilon: float = BATCH_NORM_EPSILON) -> Any:
    """Applies batch normalization over the channels of `[..., channels]`."""
    return layers.BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM, epsilon=epsilon, name=name
    )(x)


def relu(x: Any, name: str, max_value: float | None = None) -> Any:
    """Applies a ReLU, clipped at `max_value` if given; any shape."""
    return layers.ReLU(max_value, name=name)(x)


def head(x: Any, num_classes: int, activation: str | None) -> Any:
    """Averages the last feature map and classifies it.

    Args:
        x: Feature map `[batch, height, width, channels]`.
        num_classes: Number of outputs.
        activation: None for logits, or such as `"softmax"`.
    """
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return layers.Dense(num_classes, activation=activation, name="head_dense")(x)


def is_small(input_shape: tuple[int, int, int], stem: str) -> bool:
    """Returns whether the stem should keep the size of the image.

    Args:
        input_shape: Height, width, channels.
        stem: `"cifar"` (keep), `"imagenet"` (shrink) or `"auto"`: keep below 64 pixels.

    Raises:
        ValueError: No such stem.
    """
    if stem not in ("auto", "cifar", "imagenet"):
        raise ValueError(
            "`stem` must be 'auto', 'cifar' or 'imagenet'. "
            f"Received: stem={stem!r}. Use 'auto' to let the input size decide."
        )
    return stem == "cifar" or (stem == "auto" and min(input_shape[:2]) < SMALL_IMAGE)
