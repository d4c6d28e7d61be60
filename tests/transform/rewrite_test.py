import keras
import numpy as np
import pytest
from keras import layers, ops

from gmpq_tf.graph import GraphError, read_graph
from gmpq_tf.transform.rewrite import (
    clone_layer,
    copy_weights,
    logits_of,
    rebuild,
    split_activations,
)
from tests.transform.models import MODELS, batch_of, flat


@pytest.mark.parametrize("name", sorted(MODELS))
def test_rebuilt_model_computes_the_same(name):
    model = MODELS[name]()
    graph = read_graph(model)
    again = rebuild(graph, model.name, clone_layer)
    copy_weights(graph, again)
    x = batch_of(model)
    np.testing.assert_allclose(flat(again(x)), flat(model(x)), atol=1e-5)
    found, expected = again(x), model(x)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
    assert isinstance(expected, (list, dict)) == isinstance(found, (list, dict))


def test_two_calls_of_a_split_layer_share_the_activation():
    inputs = keras.Input((4,), name="x")
    dense = layers.Dense(4, activation="tanh", name="d")
    graph = split_activations(read_graph(keras.Model(inputs, dense(dense(inputs)))))
    assert [c.name for c in graph.calls] == ["d", "d_activation"] * 2
    assert graph.calls[1].layer is graph.calls[3].layer


@pytest.mark.parametrize("activation", ["linear", "relu", "relu6"])
def test_what_tflite_fuses_stays_inside(activation):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Dense(3, activation=activation)(inputs))
    assert len(split_activations(read_graph(model)).calls) == 1


X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
ENDS = {
    "inside the layer": lambda x: layers.Dense(3, activation="softmax", name="d")(x),
    "a softmax layer": lambda x: layers.Softmax()(layers.Dense(3, name="d")(x)),
    "an activation": lambda x: layers.Activation("softmax")(
        layers.Dense(3, name="d")(x)
    ),
    "an operation": lambda x: ops.softmax(layers.Dense(3, name="d")(x)),
    "none": lambda x: layers.Dense(3, name="d")(x),
    "sigmoid": lambda x: layers.Dense(3, activation="sigmoid", name="d")(x),
}


@pytest.mark.parametrize("end", sorted(ENDS))
def test_logits_are_the_scores_before_the_softmax(end):
    inputs = keras.Input((5,), name="x")
    model = keras.Model(inputs, ENDS[end](inputs))
    logits = keras.Model(inputs, logits_of(model))
    dense = model.get_layer("d")
    expected = X @ dense.kernel.numpy() + dense.bias.numpy()
    before = model(X).numpy()
    np.testing.assert_allclose(logits(X), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model(X), before)


def test_logits_of_several_outputs_are_refused():
    inputs = keras.Input((5,), name="x")
    model = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(3)(inputs)])
    with pytest.raises(GraphError, match=r"one output.*with 2 outputs"):
        logits_of(model)
