"""Fake quantizers: pure functions, and the Keras layers that own their variables."""

import keras

from gmpq_tf.quantizers.decay import spare_quantizers
from gmpq_tf.quantizers.input_quantizer import INPUT_QUANTIZERS, InputQuantizer
from gmpq_tf.quantizers.kernel_quantizer import KERNEL_QUANTIZERS, KernelQuantizer

__all__ = ["INPUT_QUANTIZERS", "KERNEL_QUANTIZERS", "InputQuantizer", "KernelQuantizer"]

spare_quantizers(keras.optimizers.Optimizer)
