"""Keras layers: Quant* compute at one bit-width, Mixed* search among several."""

from gmpq_tf.layers.mixed import MixedConv2D, MixedDense, MixedDepthwiseConv2D
from gmpq_tf.layers.quantized import QuantConv2D, QuantDense, QuantDepthwiseConv2D
from gmpq_tf.layers.unit_quantizer import UnitQuantizer

QUANT_LAYERS = {
    "Conv2D": QuantConv2D,
    "DepthwiseConv2D": QuantDepthwiseConv2D,
    "Dense": QuantDense,
}
MIXED_LAYERS = {
    "Conv2D": MixedConv2D,
    "DepthwiseConv2D": MixedDepthwiseConv2D,
    "Dense": MixedDense,
}

__all__ = [
    "MIXED_LAYERS",
    "QUANT_LAYERS",
    "MixedConv2D",
    "MixedDense",
    "MixedDepthwiseConv2D",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "UnitQuantizer",
]
