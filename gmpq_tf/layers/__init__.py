"""Keras layers: Quant* compute at one bit-width, Mixed* search among several."""

from typing import Any

from gmpq_tf.layers.batch_norm import BatchNormalization
from gmpq_tf.layers.mixed import MIXED_LAYERS
from gmpq_tf.layers.quantized import (
    QUANT_LAYERS,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
)
from gmpq_tf.layers.unit_quantizer import UnitQuantizer

MixedConv2D: Any = MIXED_LAYERS["Conv2D"]
MixedDense: Any = MIXED_LAYERS["Dense"]
MixedDepthwiseConv2D: Any = MIXED_LAYERS["DepthwiseConv2D"]

__all__ = [
    "MIXED_LAYERS",
    "QUANT_LAYERS",
    "BatchNormalization",
    "MixedConv2D",
    "MixedDense",
    "MixedDepthwiseConv2D",
    "QuantConv2D",
    "QuantDense",
    "QuantDepthwiseConv2D",
    "UnitQuantizer",
]
