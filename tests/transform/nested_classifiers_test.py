"""Classifiers inside other models: their logits, and what is distilled from them."""

import keras
import numpy as np
import pytest
from keras import layers

from gmpq_tf.attribution import split_head
from gmpq_tf.search.distill import Distiller, binary_gap, soft_cross_entropy
from gmpq_tf.train.recipe import gives_logits, make_loss
from gmpq_tf.transform.rewrite import flattened, logits_of, scores_of

IMAGE = (8, 8, 3)
X = np.random.default_rng(0).uniform(-1, 1, (6, *IMAGE)).astype("float32")


def inner(activation="softmax", units=3):
    x = inputs = keras.Input(IMAGE)
    x = layers.Conv2D(4, 3, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(units, activation=activation)(x))


def functional(net):
    inputs = keras.Input(IMAGE)
    return keras.Model(inputs, net(inputs))


def sequential(net):
    return keras.Sequential([keras.Input(IMAGE), layers.Rescaling(1.0), net])


def base_and_head(net):
    """The classifier cut before its last layer, which is called on its own."""
    base = keras.Model(net.input, net.layers[-2].output)
    inputs = keras.Input(IMAGE)
    return keras.Model(inputs, net.layers[-1](base(inputs, training=False)))


def in_float32(net):
    """As the guide on mixed precision ends a model."""
    inputs = keras.Input(IMAGE)
    return keras.Model(
        inputs, layers.Activation("linear", dtype="float32")(net(inputs))
    )


NESTS = {
    "flat": lambda net: net,
    "functional": functional,
    "sequential": sequential,
    "deep": lambda net: functional(sequential(functional(net))),
    "base_and_head": base_and_head,
    "in_float32": in_float32,
}


def logits_by_hand(net, x):
    """The net's last layer without its activation."""
    features = keras.Model(net.input, net.layers[-2].output)(x)
    last = net.layers[-1]
    return np.asarray(features) @ np.asarray(last.kernel) + np.asarray(last.bias)


@pytest.mark.parametrize("activation", ["softmax", layers.Softmax(), "sigmoid", None])
@pytest.mark.parametrize("nest", sorted(NESTS))
def test_logits_are_those_of_the_flat_model(nest, activation):
    net = inner(activation)
    model = NESTS[nest](net)
    inputs = model.inputs[0]
    found = keras.Model(inputs, logits_of(model))(X)
    np.testing.assert_allclose(found, logits_by_hand(net, X), atol=1e-5)
    assert gives_logits(model) == (activation is None)
    assert make_loss(model).get_config()["from_logits"] == (activation is None)


@pytest.mark.parametrize("nest", sorted(NESTS))
def test_distillation_softens_logits(nest):
    keras.utils.set_random_seed(0)
    student, teacher = inner(), inner()
    for weight in (*student.weights, *teacher.weights):
        weight.assign(weight.value * 5)
    distiller = Distiller(NESTS[nest](student), NESTS[nest](teacher), 1.0, 4.0)
    distiller.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    logits = [logits_by_hand(net, X) / 4 for net in (teacher, student)]
    expected = 16 * float(soft_cross_entropy(*map(np.float32, logits)))
    logs = distiller.fit(X, np.zeros(6), batch_size=6, verbose=0).history
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("activation", "units"), [(None, 1), ("sigmoid", 2)])
def test_sigmoids_are_distilled_each_on_its_own(activation, units):
    student, teacher = inner(activation, units), inner(activation, units)
    distiller = Distiller(functional(student), functional(teacher), 1.0, 2.0)
    # Of one number without an end, squared errors would say that it is no score.
    loss = "mse" if activation else keras.losses.BinaryCrossentropy(from_logits=True)
    distiller.compile("sgd", loss, jit_compile=False)
    odds = [1 / (1 + np.exp(-logits_by_hand(n, X) / 2)) for n in (teacher, student)]
    gaps = [
        odds[0] * np.log(odds[0] / odds[1]),
        (1 - odds[0]) * np.log((1 - odds[0]) / (1 - odds[1])),
    ]
    expected = 4 * np.sum(gaps, axis=(0, 2)).mean()
    logs = distiller.fit(X, np.zeros((6, units)), batch_size=6, verbose=0).history
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert expected > 0 or float(binary_gap(X[:, 0, 0], X[:, 0, 0])) == 0


@pytest.mark.parametrize("nest", ["functional", "sequential", "deep"])
def test_heads_of_nested_models_are_split(nest):
    model = NESTS[nest](inner())
    backbone, head = split_head(model)
    assert len(backbone.output_shape) == 4
    logits, output = head(backbone(X))
    np.testing.assert_allclose(output, model(X), atol=1e-5)
    np.testing.assert_allclose(keras.ops.softmax(logits), output, atol=1e-5)


def test_flat_models_are_left_as_they_are():
    net = inner()
    assert flattened(net) is net
    assert scores_of(net)[1] == "softmax"
    copy = flattened(functional(net))
    np.testing.assert_allclose(copy(X), net(X), atol=1e-6)
    assert [layer.name for layer in copy.layers[1:]] == [
        layer.name for layer in net.layers[1:]
    ]
