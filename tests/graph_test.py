import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gmpq_tf.graph import (
    GraphError,
    Ref,
    fill,
    free_name,
    is_searchable,
    kernel_size,
    layer_macs,
    read_graph,
    searchable_layers,
    searchable_names,
    separable_parts,
)


def block(name):
    inputs = keras.Input((8, 8, 3), name="in")
    x = layers.Conv2D(3, 3, padding="same", name="conv")(inputs)
    return keras.Model(inputs, layers.ReLU(name="relu")(x), name=name)


def tower():
    inputs = keras.Input((8, 8, 3), name="image")
    x = block("a")(inputs)
    x = block("b")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="tower")


def test_nested_models_are_inlined_in_order():
    graph = read_graph(tower())
    assert [call.name for call in graph.calls] == [
        "conv",
        "relu",
        "b_conv",
        "b_relu",
        "flat",
        "head",
    ]
    assert graph.shapes[graph.outputs[0]] == (None, 5)
    assert graph.input_names == ["image"]


def test_every_tensor_is_made_before_it_is_read():
    graph = read_graph(tower())
    known = set(graph.inputs)
    for call in graph.calls:
        assert set(call.inputs) <= known
        known.update(call.outputs)
    assert set(graph.outputs) <= known


def test_producers_and_consumers():
    inputs = keras.Input((4,), name="x")
    hidden = layers.Dense(4, name="d")(inputs)
    graph = read_graph(
        keras.Model(inputs, layers.Multiply(name="square")([hidden, hidden]))
    )
    assert graph.producers()[graph.outputs[0]].name == "square"
    assert graph.inputs[0] not in graph.producers()
    (middle,) = graph.calls[0].outputs
    assert [call.name for call in graph.consumers()[middle]] == ["square", "square"]


def test_shared_layer_is_one_layer_and_two_calls():
    inputs = keras.Input((4, 4, 2), name="x")
    conv = layers.Conv2D(2, 1, name="conv")
    model = keras.Model(inputs, conv(conv(inputs)))
    assert [call.name for call in read_graph(model).calls] == ["conv", "conv"]
    assert searchable_layers(model) == [conv]
    assert searchable_names(model) == ["conv"]
    assert layer_macs(model) == {"conv": 2 * 4 * 4 * 4}


def test_sequential_and_its_subclass():
    class Mine(keras.Sequential):
        pass

    model = Mine(
        [keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")]
    )
    assert searchable_names(model) == ["a", "b"]


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


def test_kernel_size():
    layer = layers.Conv2D(6, 3, groups=2)
    layer.build((None, 8, 8, 4))
    assert kernel_size(layer) == np.prod(layer.kernel.shape) == 3 * 3 * 2 * 6


def test_fill():
    structure = ([Ref(1), 2, "text"], {"a": (Ref(0), None)}, slice(1, None))
    assert fill(structure, {0: "zero", 1: "one"}) == (
        ["one", 2, "text"],
        {"a": ("zero", None)},
        slice(1, None),
    )


def test_free_name():
    assert free_name("a", {"b"}) == "a"
    assert free_name("a", {"a"}) == "a_1"
    assert free_name("a", {"a", "a_1", "a_2"}) == "a_3"


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize("model", [Subclassed(name="m"), keras.Sequential(name="m")])
def test_model_without_a_graph_is_refused(model):
    with pytest.raises(GraphError, match=r"Received: model=\w+ \(name='m'\)"):
        read_graph(model)


def test_reading_changes_nothing():
    model = tower()
    before = model.get_config(), [len(lay._inbound_nodes) for lay in model.layers]
    read_graph(model)
    after = model.get_config(), [len(lay._inbound_nodes) for lay in model.layers]
    assert after == before
