import keras
import pytest
from keras import layers

from gmpq_tf.graph import (
    GraphError,
    layer_macs,
    read_graph,
    searchable_layers,
    searchable_names,
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
