"""BatchNormalization whose training pass is one kernel of TensorFlow."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

MIN_EPSILON = 1.001e-5  # the smallest epsilon that cuDNN accepts
NARROW = ("float32", "bfloat16", "float16")  # computed in float32, as Keras does


# It has the name of the stock class: weight files address layers by class name, and
# code that decides by the kind of a layer treats it like the stock one.
@keras.saving.register_keras_serializable("gmpq_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that trains in a third of the time.

    `y = gamma (x - mean) / sqrt(var + epsilon) + beta` over a batch, forward and
    backward in one pass each, where Keras takes a dozen passes over the whole tensor.
    Values, gradients and moving statistics equal those of Keras up to the order of
    additions; second derivatives differ, because Keras leaves out one of their terms.
    In inference, and for settings that TensorFlow's kernel does not support, Keras's
    own code runs.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None
    ) -> tf.Tensor:
        if not (training and self.trainable and mask is None and self._fuses(inputs)):
            return super().call(inputs, training=training, mask=mask)
        x = tf.cast(inputs, tf.float32)
        shape = [x.shape[-1]]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.cast(self.gamma, x.dtype) if self.scale else tf.ones(shape),
            offset=tf.cast(self.beta, x.dtype) if self.center else tf.zeros(shape),
            mean=[],
            variance=[],
            epsilon=self.epsilon,
            is_training=True,
        )
        # The kernel returns the unbiased variance, n / (n - 1) times the variance of
        # the batch; Keras keeps the latter.
        count = tf.cast(tf.size(x) // shape[0], x.dtype)
        variance *= tf.maximum(count - 1, 1) / count
        for moving, new in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            old = tf.cast(moving, x.dtype)
            moving.assign(old * self.momentum + new * (1 - self.momentum))
        return tf.cast(outputs, self.compute_dtype)

    def _fuses(self, inputs: tf.Tensor) -> bool:
        """Whether TensorFlow's kernel supports this layer for inputs [B, H, W, C]."""
        return (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and inputs.dtype in NARROW
            and self.epsilon >= MIN_EPSILON
            and not self.synchronized
            and not getattr(self, "renorm", False)
        )


def fused_norm(layer: Any) -> Any:
    """The faster `BatchNormalization` for a stock one that has no weights yet.

    Any other layer is returned unchanged.
    """
    if type(layer) is not keras.layers.BatchNormalization:
        return layer
    return BatchNormalization.from_config(layer.get_config())
