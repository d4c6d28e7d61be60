"""A layer that stores a detector's default boxes, so that its file contains them."""

from __future__ import annotations

from typing import Any

import keras

from gmpq_tf.detection.default_boxes import BoxError, DefaultBoxes


@keras.saving.register_keras_serializable("gmpq_tf")
class DefaultBoxesLayer(keras.layers.Layer):
    """Returns offsets unchanged, and stores the default boxes they belong to.

    It is the last layer at the offsets of a detector. Quantizing, saving and exporting
    treat it as an identity.

    Args:
        default_boxes: `DefaultBoxes`, or their configuration.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        BoxError: the numbers of default boxes and of offsets differ.
    """

    graph_kind = "Identity"

    def __init__(self, default_boxes: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(default_boxes, DefaultBoxes):
            default_boxes = DefaultBoxes.from_config(default_boxes)
        self.default_boxes = default_boxes

    def build(self, input_shape: Any) -> None:
        """Checks that there is one default box for each row of offsets.

        Raises:
            BoxError: their number is another.
        """
        wanted = (self.default_boxes.count, 4)
        if tuple(input_shape[1:]) != wanted:
            raise BoxError(
                "A detector needs four offsets for each default box: [batch, "
                f"{wanted[0]}, 4]. Received: {tuple(input_shape)}. Make the boxes for "
                "the feature maps of the model, level by level."
            )

    def call(self, offsets: Any) -> Any:
        return offsets

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict:
        boxes = self.default_boxes.to_config()
        return {**super().get_config(), "default_boxes": boxes}


def default_boxes_of(model: Any) -> DefaultBoxes | None:
    """Finds the default boxes that a model stores.

    Args:
        model: a Keras model; nested models are searched too.

    Returns:
        The boxes; None where the model is not a detector of this package.
    """
    for layer in getattr(model, "layers", ()):
        if isinstance(layer, DefaultBoxesLayer):
            return layer.default_boxes
        if (found := default_boxes_of(layer)) is not None:
            return found
    return None
