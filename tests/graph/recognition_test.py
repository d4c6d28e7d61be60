import keras
from keras import layers

from gmpq_tf.graph import is_searchable, read_graph


def test_activation_of_a_call():
    inputs = x = keras.Input((4,), name="x")
    for activation in (None, "relu", layers.LeakyReLU(0.1)):
        x = layers.Dense(4, activation=activation)(x)
    x = layers.BatchNormalization()(x)
    found = [call.activation for call in read_graph(keras.Model(inputs, x)).calls]
    assert found == ["linear", "relu", "LeakyReLU", "linear"]


def test_what_is_searchable():
    class Odd(layers.Dense):
        """A subclass may compute anything."""

    assert is_searchable(layers.Dense(2)) and is_searchable(layers.Conv2D(2, 3))
    assert is_searchable(layers.DepthwiseConv2D(3))
    assert not is_searchable(Odd(2))
    assert is_searchable(layers.Conv2DTranspose(2, 3))
    assert not is_searchable(layers.Conv3DTranspose(2, 3))
    assert is_searchable(layers.Conv1D(2, 3))
    assert not is_searchable(layers.Conv3D(2, 3))
