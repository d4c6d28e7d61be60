"""Single-shot detectors (Liu et al., "SSD", ECCV 2016, arXiv:1512.02325).

Their outputs are `{"boxes": offsets [batch, N, 4], "scores": [batch, N, classes + 1]}`
with the background first; see `gmpq_tf.detection`. Layers of a backbone have the same
names as in the classifier, so that a policy of the classifier fits the detector.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
from keras import layers

from gmpq_tf.detection import DefaultBoxes, DefaultBoxesLayer, ssd_boxes
from gmpq_tf.models.blocks import batch_norm, conv, depthwise, is_small, relu
from gmpq_tf.models.mobilenet_v2 import mobilenet_v2_features
from gmpq_tf.models.resnet import resnet8_features, resnet20_features
from gmpq_tf.models.vgg import vgg16_features

# SSD300: boxes of 30, 60, 111, ... of 300 pixels, at steps of 8, 16, ... pixels.
_SIZES = tuple(side / 300 for side in (30, 60, 111, 162, 213, 264, 315))
_STEPS = tuple(step / 300 for step in (8, 16, 32, 64, 100, 300))
_RATIOS = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
_VGG_EXTRAS = ((256, 512, 2), (128, 256, 2), (128, 256, 1), (128, 256, 1))
_FC_FILTERS, _FC_DILATION = 1024, 6
# Detectors for small images: the boxes of a level are twice as large as at the one
# before.
_SMALLEST, _SMALL_LEVELS = 0.06, 4
_SMALL_RATIOS = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0,))
_SMALL_EXTRAS = ((64, 128, 2), (64, 128, 2))
_LITE_EXTRAS = (512, 256, 256, 128)  # of TensorFlow's SSDLite

# Detector -> classifier with the same backbone, whose weights and policies fit.
BACKBONES = {
    "faster_rcnn_resnet18": "resnet18",
    "ssd300_vgg16": "vgg16",
    "ssd_mobilenet_v2": "mobilenet_v2",
    "ssd_resnet20": "resnet20",
    "ssd_resnet8": "resnet8",
}

# Detector -> image side of its classifier, where dense layers of the classifier become
# convolutions of the detector.
DENSE_SIDES = {"ssd300_vgg16": 224}

SourceNorm = Literal["batch", "l2"]


def ssd300_vgg16(
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str | None = None,
    source_norm: SourceNorm = "batch",
) -> keras.Model:
    """Builds SSD300 of VGG-16: 8,732 default boxes at 300 x 300 pixels.

    Unlike in the paper, the feature map of stage 4 is by default normalized by
    BatchNormalization, which integer arithmetic computes exactly.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of classes, without background.
        classifier_activation: None for logits, or such as `"softmax"`.
        source_norm: How the feature map of stage 4 is normalized for its heads:
            `"batch"`, or `"l2"` over the channels, times a learned scale of 20, which
            a file computes in float (`float_layers="allow"`) or not at all.
    """
    inputs = keras.Input(input_shape, name="image")
    *_, fourth, fifth = vgg16_features(inputs, _halve_rounding_up)
    x = layers.MaxPooling2D(3, 1, padding="same", name="stage5_pool")(fifth)
    x = layers.Conv2D(
        _FC_FILTERS,
        3,
        padding="same",
        dilation_rate=_FC_DILATION,
        kernel_initializer="he_normal",
        name="head_fc1",
    )(x)
    x = relu(x, "head_fc1_relu")
    x = relu(conv(x, _FC_FILTERS, 1, 1, "head_fc2", use_bias=True), "head_fc2_relu")
    maps = [_normalized(fourth, source_norm), x, *_extras(x, _VGG_EXTRAS)]
    shapes = [tuple(each.shape[1:3]) for each in maps]
    sizes = list(itertools.pairwise(_SIZES))
    whole = tuple(input_shape[:2]) == (300, 300)
    boxes = DefaultBoxes(shapes, sizes, _RATIOS, steps=_STEPS if whole else None)
    outputs = _heads(maps, boxes, num_classes, classifier_activation, _conv_head)
    return keras.Model(inputs, outputs, name="ssd300_vgg16")


def ssd_mobilenet_v2(
    input_shape: tuple[int, int, int],
    num_classes: int,
    alpha: float = 1.0,
    stem: str = "auto",
    classifier_activation: str | None = None,
    padding: str = "same",
) -> keras.Model:
    """Builds SSDLite of MobileNetV2 (Sandler et al., section 6.2).

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of classes, without background.
        alpha: As for `mobilenet_v2`.
        stem: As for `mobilenet_v2`.
        classifier_activation: None for logits, or such as `"softmax"`.
        padding: As for `mobilenet_v2`.
    """
    inputs = keras.Input(input_shape, name="image")
    shrink = 1 if is_small(input_shape, stem) else 2
    maps = mobilenet_v2_features(inputs, alpha, shrink, padding)
    x = maps[-1]
    for number, filters in enumerate(_LITE_EXTRAS, 1):
        name = f"extra{number}"
        x = conv(x, filters // 2, 1, 1, f"{name}_conv1", use_bias=True)
        x = relu(x, f"{name}_relu1", max_value=6.0)
        x = depthwise(x, 2, f"{name}_depthwise", symmetric=True)
        x = relu(x, f"{name}_depthwise_relu", max_value=6.0)
        x = conv(x, filters, 1, 1, f"{name}_conv2", use_bias=True)
        x = relu(x, f"{name}_relu2", max_value=6.0)
        maps.append(x)
    boxes = ssd_boxes([each.shape[1:3] for each in maps], ratios=_RATIOS)
    outputs = _heads(maps, boxes, num_classes, classifier_activation, _lite_head)
    return keras.Model(inputs, outputs, name="ssd_mobilenet_v2")


def ssd_resnet8(
    input_shape: tuple[int, int, int],
    num_classes: int,
    stem: str = "auto",
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds a small detector on ResNet-8, with feature maps of stride 4, 8, 16, 32.

    Args:
        input_shape: Height, width, channels.
        num_classes: Number of classes, without background.
        stem: `"imagenet"` (the first convolution halves the image), `"cifar"` or
            `"auto"`: `"cifar"` below 64 pixels.
        classifier_activation: None for logits, or such as `"softmax"`.
    """
    given = (input_shape, num_classes, stem, classifier_activation)
    return _small(*given, resnet8_features, "ssd_resnet8")


def ssd_resnet20(
    input_shape: tuple[int, int, int],
    num_classes: int,
    stem: str = "auto",
    classifier_activation: str | None = None,
) -> keras.Model:
    """Builds a small detector on ResNet-20; arguments as for `ssd_resnet8`."""
    given = (input_shape, num_classes, stem, classifier_activation)
    return _small(*given, resnet20_features, "ssd_resnet20")


def _small(
    input_shape: tuple[int, int, int],
    num_classes: int,
    stem: str,
    activation: str | None,
    features: Callable[..., list[Any]],
    name: str,
) -> keras.Model:
    inputs = keras.Input(input_shape, name="image")
    maps = features(inputs, 1 if is_small(input_shape, stem) else 2)[1:]
    maps += _extras(maps[-1], _SMALL_EXTRAS)
    sides = [_SMALLEST * 2**level for level in range(_SMALL_LEVELS + 1)]
    boxes = DefaultBoxes(
        [each.shape[1:3] for each in maps],
        list(itertools.pairwise(sides)),
        _SMALL_RATIOS,
    )
    outputs = _heads(maps, boxes, num_classes, activation, _conv_head)
    return keras.Model(inputs, outputs, name=name)


def _extras(x: Any, widths: Sequence[tuple[int, int, int]]) -> list[Any]:
    """Adds levels of a 1x1 and a 3x3 convolution each, without normalization.

    The statistics of feature maps with only a few positions would be noise.
    """
    maps = []
    for number, (narrow, wide, strides) in enumerate(widths, 1):
        name = f"extra{number}"
        x = conv(x, narrow, 1, 1, f"{name}_conv1", use_bias=True)
        x = relu(x, f"{name}_relu1")
        if strides == 2:
            x = conv(x, wide, 3, 2, f"{name}_conv2", use_bias=True, symmetric=True)
        else:
            x = layers.Conv2D(
                wide,
                3,
                padding="same" if min(x.shape[1:3]) < 3 else "valid",
                kernel_initializer="he_normal",
                name=f"{name}_conv2",
            )(x)
        x = relu(x, f"{name}_relu2")
        maps.append(x)
    return maps


def _heads(
    maps: Sequence[Any],
    boxes: DefaultBoxes,
    num_classes: int,
    activation: str | None,
    make: Callable[[Any, int, str], Any],
) -> dict[str, Any]:
    """Returns offsets and scores of all default boxes, levels concatenated."""
    rows: dict[str, list[Any]] = {"boxes": [], "scores": []}
    widths = {"boxes": 4, "scores": num_classes + 1}
    for level, (x, count) in enumerate(zip(maps, boxes.boxes_per_place, strict=True)):
        for kind, width in widths.items():
            y = make(x, count * width, f"{kind}{level}")
            y = layers.Reshape((-1, width), name=f"{kind}{level}_rows")(y)
            rows[kind].append(y)
    offsets = layers.Concatenate(axis=1, name="boxes_rows")(rows["boxes"])
    last = "scores" if activation is None else "scores_rows"
    scores = layers.Concatenate(axis=1, name=last)(rows["scores"])
    if activation is not None:
        scores = layers.Activation(activation, name="scores")(scores)
    return {"boxes": DefaultBoxesLayer(boxes, name="boxes")(offsets), "scores": scores}


def _conv_head(x: Any, filters: int, name: str) -> Any:
    return layers.Conv2D(filters, 3, padding="same", name=name)(x)


def _lite_head(x: Any, filters: int, name: str) -> Any:
    x = depthwise(x, 1, f"{name}_depthwise")
    x = relu(batch_norm(x, f"{name}_bn"), f"{name}_relu", max_value=6.0)
    return layers.Conv2D(filters, 1, name=name)(x)


def _normalized(x: Any, kind: SourceNorm) -> Any:
    """Normalizes a feature map whose values are too large for heads to learn from."""
    if kind not in ("batch", "l2"):
        raise ValueError(
            "`source_norm` must be 'batch' or 'l2'. "
            f"Received: source_norm={kind!r}. Use 'batch', which integers compute."
        )
    if kind == "batch":
        return batch_norm(x, "stage4_norm")
    x = layers.UnitNormalization(name="stage4_norm")(x)
    twenty = keras.initializers.Constant(20.0)
    scale = layers.DepthwiseConv2D(
        1, use_bias=False, depthwise_initializer=twenty, name="stage4_scale"
    )
    return scale(x)


def _halve_rounding_up(x: Any, name: str) -> Any:
    """Applies a 2x2 maximum pool; 75 pixels become 38."""
    return layers.MaxPooling2D(2, padding="same", name=name)(x)
