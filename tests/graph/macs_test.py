import keras
import numpy as np
import pytest
from keras import layers

from gmpq_tf.graph import GraphError, kernel_size, layer_macs


def test_macs_by_hand():
    inputs = x = keras.Input((9, 9, 4), name="x")
    x = layers.Conv2D(6, 3, strides=2, groups=2, name="conv")(x)  # 4 x 4
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Dense(5, name="pointwise")(x)
    x = layers.Dense(7, name="head")(layers.Flatten(name="flat")(x))
    assert layer_macs(keras.Model(inputs, x)) == {
        "conv": 4 * 4 * 3 * 3 * 2 * 6,
        "depthwise": 4 * 4 * 3 * 3 * 6,
        "pointwise": 4 * 4 * 6 * 5,
        "head": 80 * 7,
    }


def test_macs_need_a_fixed_size():
    inputs = keras.Input((None, None, 3), name="x")
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="conv")(inputs))
    with pytest.raises(
        GraphError, match=r"layer='conv'.*Give the model's Input a shape"
    ):
        layer_macs(model)


def test_kernel_size():
    layer = layers.Conv2D(6, 3, groups=2)
    layer.build((None, 8, 8, 4))
    assert kernel_size(layer) == np.prod(layer.kernel.shape) == 3 * 3 * 2 * 6
