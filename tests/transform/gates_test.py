import keras
import numpy as np
import pytest
from keras import layers, ops

from gmpq_tf.graph import read_graph
from gmpq_tf.transform.gates import curve, merge_hard_sigmoids, split_gates
from gmpq_tf.transform.rewrite import clone_layer, copy_weights, rebuild
from tests.transform.models import gates

X = np.linspace(-7, 7, 600, dtype="float32").reshape(50, 12)
SWISHES = {
    "silu layer": (lambda x: layers.Activation("silu", name="s")(x), keras.ops.silu),
    "swish layer": (lambda x: layers.Activation("swish", name="s")(x), keras.ops.silu),
    "hard layer": (
        lambda x: layers.Activation("hard_swish", name="s")(x),
        keras.ops.hard_silu,
    ),
    "silu operation": (ops.silu, keras.ops.silu),
    "hard operation": (ops.hard_silu, keras.ops.hard_silu),
}
SPELLINGS = {
    "times a sixth": lambda x: layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0),
    "a sixth times": lambda x: (1.0 / 6.0) * layers.ReLU(6.0)(3.0 + x),
    "by six": lambda x: ops.relu6(x + 3.0) / 6.0,
    "activation": lambda x: layers.Activation("relu6")(x + 3.0) / 6.0,
}
OTHERS = {
    "another offset": lambda x: layers.ReLU(6.0)(x + 2.0) / 6.0,
    "another limit": lambda x: layers.ReLU(5.0)(x + 3.0) / 6.0,
    "another factor": lambda x: layers.ReLU(6.0)(x + 3.0) * 0.17,
    "six by it": lambda x: 6.0 / layers.ReLU(6.0)(x + 3.0),
    "read twice": lambda x: (lambda y: y * (1.0 / 6.0) + y)(layers.ReLU(6.0)(x + 3.0)),
}


def model_of(function):
    inputs = keras.Input((12,), name="x")
    return keras.Model(inputs, function(inputs))


def rebuilt(graph, model):
    again = rebuild(graph, "again", clone_layer)
    copy_weights(graph, again)
    return again


@pytest.mark.parametrize("case", sorted(SWISHES))
def test_swish_becomes_a_product_of_the_same_value(case):
    function, expected = SWISHES[case]
    model = model_of(function)
    graph = split_gates(read_graph(model))
    gate, product = graph.calls
    assert curve(gate) in ("sigmoid", "hard_sigmoid")
    assert (gate.name, product.kind) == (f"{product.name}_gate", "Multiply")
    assert product.name == model.operations[-1].name
    found = np.asarray(rebuilt(graph, model)(X))
    np.testing.assert_allclose(found, expected(X), atol=1e-6)


@pytest.mark.parametrize("case", sorted(SPELLINGS))
def test_spelled_out_hard_sigmoid_is_one_call(case):
    model = model_of(SPELLINGS[case])
    graph = merge_hard_sigmoids(read_graph(model))
    assert [curve(call) for call in graph.calls] == ["hard_sigmoid"]
    expected = np.clip(X / 6 + 0.5, 0, 1)
    np.testing.assert_allclose(rebuilt(graph, model)(X), expected, atol=1e-6)


@pytest.mark.parametrize("case", sorted(OTHERS))
def test_what_only_looks_like_one_stays(case):
    graph = read_graph(model_of(OTHERS[case]))
    assert merge_hard_sigmoids(graph).calls == graph.calls


def test_whole_model_computes_the_same():
    model = gates()
    graph = split_gates(read_graph(model))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(rebuilt(graph, model)(x), model(x), atol=1e-5)


def test_a_shared_activation_is_split_at_every_use():
    swish = layers.Activation("silu", name="swish")
    graph = split_gates(read_graph(model_of(lambda x: swish(swish(x)))))
    assert [call.name for call in graph.calls] == ["swish_gate", "swish"] * 2
    assert graph.calls[0].layer is graph.calls[2].layer
