"""Tensors matched with variables: what differs is named, what ours lack folded in."""

import keras
import numpy as np
import pytest

from gmpq_tf.models.foreign.files import WeightFile, WeightsError
from gmpq_tf.models.foreign.layouts import Layout
from gmpq_tf.models.foreign.match import (
    assign,
    check_names,
    check_shapes,
    convert,
    find_slots,
    new_classifier,
)

OWN = Layout("gmpq_tf net", {}, epsilon=None, scaling="")


def network(classes=2, epsilon=1e-3, size=4, hidden=True, use_bias=False):
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(5, 3, use_bias=use_bias, name="a_conv1")(inputs)
    x = keras.layers.BatchNormalization(epsilon=epsilon, name="a_bn1")(x)
    x = keras.layers.Conv2D(4, 1, use_bias=use_bias, name="a_shortcut")(x)
    x = keras.layers.BatchNormalization(epsilon=epsilon, name="a_shortcut_bn")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(6, name="fc")(x) if hidden else x
    x = keras.layers.Dense(classes, name="head")(x)
    model = keras.Model(inputs, x)
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.001, 0.5, w.shape) for w in model.weights])
    return model


def file_of(model, **changes):
    tensors = {
        f"{layer.name}/{weight.name}": np.array(weight)
        for layer in model.layers
        for weight in layer.weights
    }
    return WeightFile("here", "keras", {**tensors, **changes})


def without(file, *names):
    kept = {key: value for key, value in file.tensors.items() if key not in names}
    return WeightFile("here", "keras", kept)


def test_the_first_missing_tensor_is_named():
    model = network()
    file = without(file_of(model), "a_bn1/beta", "fc/bias")
    with pytest.raises(WeightsError, match=r"here, which lacks 'a_bn1/beta' \(2 of 14"):
        check_names("net", find_slots(model, OWN), file)


def test_the_nearest_name_is_offered():
    model = network()
    file = without(file_of(model, **{"a_bn2/beta": np.ones(5)}), "a_bn1/beta")
    with pytest.raises(WeightsError, match=r"lacks 'a_bn1/beta'.*mean 'a_bn2/beta'"):
        check_names("net", find_slots(model, OWN), file)


def test_a_tensor_too_many_is_named():
    model = network()
    file = file_of(model, **{"fc3/bias": np.ones(2)})
    with pytest.raises(WeightsError, match=r"has 'fc3/bias'.*mean 'fc/bias'"):
        check_names("net", find_slots(model, OWN), file)
    check_names("net", find_slots(model, OWN), file_of(model))


def test_another_shape_is_named():
    model = network()
    file = file_of(model, **{"a_bn1/beta": np.ones(7)})
    with pytest.raises(WeightsError, match=r"'a_bn1/beta' is \(7,\).*be \(5,\)"):
        check_shapes("net", find_slots(model, OWN), file)
    check_shapes("net", find_slots(model, OWN), file_of(model))


@pytest.mark.parametrize(
    ("stored", "new"),
    [
        ({}, []),
        ({"classes": 9}, ["head"]),
        ({"size": 6}, ["fc", "head"]),
        ({"size": 6, "classes": 9}, ["fc", "head"]),
    ],
)
def test_dense_layers_left_new(stored, new):
    model = network()
    slots = find_slots(model, OWN)
    assert new_classifier(model, slots, file_of(network(**stored))) == new


def test_a_classifier_of_other_features_is_not_left_new():
    model = network(hidden=False)
    file = file_of(network(hidden=False, size=6))
    assert new_classifier(model, find_slots(model, OWN), file) == []


def test_another_epsilon_and_biases_are_folded_in():
    source = network(epsilon=1e-5, use_bias=True)
    model = network(epsilon=1e-3)
    layout = Layout("keras.applications.Net", {}, 1e-5, "", conv_bias=True)
    slots = find_slots(model, layout)
    file = file_of(source)
    check_names("net", slots, file)
    assign(model, convert(model, layout, slots, file), reverse_channels=False)
    images = np.random.default_rng(1).random((3, 4, 4, 3), np.float32)
    np.testing.assert_allclose(model(images), source(images), rtol=1e-5, atol=1e-5)


def test_reversed_channels_are_those_of_the_first_convolution():
    source, model = network(), network()
    slots = find_slots(model, OWN)
    values = convert(model, OWN, slots, file_of(source))
    assign(model, values, reverse_channels=True)
    images = np.random.default_rng(1).random((3, 4, 4, 3), np.float32)
    np.testing.assert_allclose(
        model(images), source(images[..., ::-1]), rtol=1e-5, atol=1e-5
    )
