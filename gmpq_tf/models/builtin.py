"""The registry of built-in models: name -> function that builds one."""

from collections.abc import Callable
from typing import Any

import keras

from gmpq_tf.models.digits import digits_cnn, digits_mobilenet
from gmpq_tf.models.faster_rcnn import faster_rcnn_resnet18
from gmpq_tf.models.mobilenet_v2 import mobilenet_v2
from gmpq_tf.models.resnet import (
    resnet8,
    resnet18,
    resnet20,
    resnet50,
    resnet50_v1_5,
    resnet56,
)
from gmpq_tf.models.ssd import (
    ssd300_vgg16,
    ssd_mobilenet_v2,
    ssd_resnet8,
    ssd_resnet20,
)
from gmpq_tf.models.vgg import vgg16
from gmpq_tf.spelling import lookup

MODELS: dict[str, Callable[..., keras.Model]] = {
    "digits_cnn": digits_cnn,
    "digits_mobilenet": digits_mobilenet,
    "mobilenet_v2": mobilenet_v2,
    "resnet8": resnet8,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet50": resnet50,
    "resnet50_v1_5": resnet50_v1_5,
    "resnet56": resnet56,
    "faster_rcnn_resnet18": faster_rcnn_resnet18,
    "ssd300_vgg16": ssd300_vgg16,
    "ssd_mobilenet_v2": ssd_mobilenet_v2,
    "ssd_resnet20": ssd_resnet20,
    "ssd_resnet8": ssd_resnet8,
    "vgg16": vgg16,
}


def build_model(
    name: str, input_shape: tuple[int, int, int], num_classes: int, **options: Any
) -> keras.Model:
    """Builds a model with new weights.

    Args:
        name: A name in `MODELS`.
        input_shape: Height, width, channels.
        num_classes: Number of outputs, which are logits unless an option says
            otherwise; for a detector the number of classes, without background.
        **options: Arguments of that model's own function.

    Returns:
        A functional Keras model whose layer names depend only on `name`.

    Raises:
        ValueError: There is no such model.
    """
    builder = lookup(MODELS, name, "model")
    return builder(tuple(input_shape), num_classes, **options)
