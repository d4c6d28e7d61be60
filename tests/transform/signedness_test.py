import keras
import pytest
from keras import layers, ops

from gmpq_tf.graph import read_graph
from gmpq_tf.transform.placement import input_signs
from gmpq_tf.transform.signedness import nonnegative_tensors

UNSIGNED, SIGNED, PLACED = False, True, None
RELU = layers.ReLU


class Centered(layers.Layer):
    """Holds a ReLU but subtracts it: what it makes is negative."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.relu

    def call(self, x):
        return x - 2 * self.activation(x)


def upsampled(x):
    return layers.UpSampling2D(2, interpolation="bicubic")(RELU()(x))


# What stands between the model input and the layer, and the sign of that layer's input.
SIGNS = {
    "nothing": (lambda x: x, PLACED),
    "rescaled input": (lambda x: layers.Rescaling(1 / 127.5, -1)(x), PLACED),
    "normalized input": (
        lambda x: layers.Normalization(mean=0.5, variance=2.0)(x),
        PLACED,
    ),
    "padded input": (lambda x: layers.ZeroPadding2D(1)(x), PLACED),
    "convolution": (lambda x: layers.Conv2D(3, 1)(x), SIGNED),
    "relu inside": (lambda x: layers.Conv2D(3, 1, activation="relu")(x), UNSIGNED),
    "relu6 inside": (lambda x: layers.Conv2D(3, 1, activation="relu6")(x), UNSIGNED),
    "sigmoid inside": (
        lambda x: layers.Conv2D(3, 1, activation="sigmoid")(x),
        UNSIGNED,
    ),
    "swish inside": (lambda x: layers.Conv2D(3, 1, activation="swish")(x), SIGNED),
    "tanh": (lambda x: layers.Activation("tanh")(x), SIGNED),
    "softmax": (lambda x: layers.Softmax()(x), UNSIGNED),
    "relu": (lambda x: RELU()(x), UNSIGNED),
    "relu of at most 6": (lambda x: RELU(6.0)(x), UNSIGNED),
    "leaky relu": (lambda x: RELU(negative_slope=0.1)(x), SIGNED),
    "leaky layer": (lambda x: layers.LeakyReLU(0.1)(x), SIGNED),
    "elu": (lambda x: layers.ELU()(x), SIGNED),
    "relu operation": (lambda x: ops.relu(x), UNSIGNED),
    "max pool of relu": (lambda x: layers.MaxPooling2D()(RELU()(x)), UNSIGNED),
    "average pool of relu": (
        lambda x: layers.AveragePooling2D(2)(RELU()(x)),
        UNSIGNED,
    ),
    "padded relu": (lambda x: layers.ZeroPadding2D(1)(RELU()(x)), UNSIGNED),
    "dropped relu": (lambda x: layers.Dropout(0.1)(RELU()(x)), UNSIGNED),
    "normalized relu": (lambda x: layers.BatchNormalization()(RELU()(x)), SIGNED),
    "sum of relus": (lambda x: layers.Add()([RELU()(x), RELU()(x)]), UNSIGNED),
    "sum with a signed one": (lambda x: layers.Add()([RELU()(x), x]), SIGNED),
    "difference": (lambda x: layers.Subtract()([RELU()(x), RELU()(x)]), SIGNED),
    "product": (lambda x: layers.Multiply()([RELU()(x), RELU()(x)]), UNSIGNED),
    "concatenated relus": (
        lambda x: layers.Concatenate()([RELU()(x), RELU()(x)]),
        UNSIGNED,
    ),
    "concatenated with a signed one": (
        lambda x: layers.Concatenate()([RELU()(x), layers.Conv2D(3, 1)(x)]),
        SIGNED,
    ),
    "relu plus a constant": (lambda x: RELU()(x) + 1.0, UNSIGNED),
    "relu plus a negative constant": (lambda x: RELU()(x) + -5.0, SIGNED),
    "relu times a negative constant": (lambda x: RELU()(x) * -1.0, SIGNED),
    "constant minus relu": (lambda x: 1.0 - RELU()(x), SIGNED),
    "least of relu and a negative one": (
        lambda x: ops.minimum(RELU()(x), -1.0),
        SIGNED,
    ),
    "custom layer that holds a relu": (lambda x: Centered()(x), SIGNED),
    "bicubic interpolation overshoots": (upsampled, SIGNED),
}


@pytest.mark.parametrize("case", sorted(SIGNS))
def test_sign_of_a_layer_input(case):
    function, expected = SIGNS[case]
    inputs = keras.Input((8, 8, 3), name="image")
    probe = layers.Conv2D(2, 1, name="probe")
    model = keras.Model(inputs, probe(function(inputs)))
    assert input_signs(read_graph(model))["probe"] is expected


def test_shared_layer_is_signed_if_one_of_its_inputs_is():
    inputs = keras.Input((8, 8, 3), name="image")
    x, shared = layers.Conv2D(3, 1)(inputs), layers.Conv2D(3, 1, name="shared")
    model = keras.Model(inputs, [shared(layers.ReLU()(x)), shared(x)])
    assert input_signs(read_graph(model))["shared"] is True


def test_tensor_numbers():
    inputs = keras.Input((4,), name="x")
    hidden = layers.Dense(3, activation="relu", name="hidden")(inputs)
    graph = read_graph(keras.Model(inputs, layers.Dense(2, name="head")(hidden)))
    assert nonnegative_tensors(graph) == {graph.calls[0].outputs[0]}
