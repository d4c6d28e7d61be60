"""Rewrites functional Keras models: hypernets to search, quantized models to ship."""

from gmpq_tf.transform.calibrate import calibrate
from gmpq_tf.transform.hypernet import build_hypernet
from gmpq_tf.transform.prune import prune_channels
from gmpq_tf.transform.quantize import quantize_model
from gmpq_tf.transform.snap import snap_biases

__all__ = [
    "build_hypernet",
    "calibrate",
    "prune_channels",
    "quantize_model",
    "snap_biases",
]
