import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gmpq_tf.graph import is_searchable, layer_macs, read_graph, separable_parts


def separable(**options):
    inputs = keras.Input((9, 9, 4), name="x")
    layer = layers.SeparableConv2D(6, 3, strides=2, name="s", **options)
    return keras.Model(inputs, layer(inputs)), layer


def test_separable_convolution_is_read_as_two():
    model, layer = separable(depth_multiplier=2, activation="relu")
    graph = read_graph(model)
    assert [(c.name, c.kind, c.activation) for c in graph.calls] == [
        ("s_depthwise", "DepthwiseConv2D", "linear"),
        ("s_pointwise", "Conv2D", "relu"),
    ]
    assert graph.calls[0].inputs == tuple(graph.inputs)
    assert graph.calls[0].outputs == graph.calls[1].inputs
    assert graph.calls[1].outputs == tuple(graph.outputs)
    assert graph.shapes[graph.calls[1].inputs[0]] == (None, 4, 4, 8)
    assert layer_macs(model) == {
        "s_depthwise": 4 * 4 * 3 * 3 * 8,
        "s_pointwise": 4 * 4 * 8 * 6,
    }
    parts = [call.layer for call in graph.calls]
    assert [len(part.weights) for part in parts] == [1, 2]
    assert all(is_searchable(part) for part in parts)
    assert not is_searchable(layer)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_halves_of_a_separable_convolution_compute_what_it_does(data_format):
    shape = (9, 8, 4) if data_format == "channels_last" else (4, 9, 8)
    layer = layers.SeparableConv2D(
        6, (3, 2), padding="same", depth_multiplier=2, data_format=data_format
    )
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    layer.build(x.shape)
    # Compiled: without oneDNN, TensorFlow's own CPU kernels are for channels_last.
    expected = tf.function(layer, jit_compile=True)(x)
    for part in separable_parts(layer):
        stock = getattr(layers, part.searchable_kind).from_config(part.get_config())
        stock.build(x.shape)
        stock.set_weights([np.asarray(w) for w in part.weights])
        x = tf.function(stock, jit_compile=True)(x)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


def test_names_of_the_halves_are_free_and_shared_with_the_layer():
    inputs = keras.Input((9, 9, 4), name="x")
    layer = layers.SeparableConv2D(4, 3, padding="same", name="s")
    x = layers.ReLU(name="s_depthwise")(layer(layer(inputs)))
    calls = read_graph(keras.Model(inputs, x)).calls
    names = ["s_depthwise_1", "s_pointwise"]
    assert [c.name for c in calls] == [*names, *names, "s_depthwise"]
    assert calls[0].layer is calls[2].layer
