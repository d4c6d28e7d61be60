"""Equalized networks compute the same, with ranges that are equal."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import gmpq_tf as gmpq
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.post_training import equalize
from tests.post_training.shipping import check_ships
from tests.transform.models import MODELS, batch_of, flat


def uneven(cap=None, norms=True, seed=3):
    """Inverted residual with channels of very different scales."""
    inputs = x = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 1, use_bias=not norms, name="expand")(x)
    x = layers.BatchNormalization(name="norm_1")(x) if norms else x
    x = layers.ReLU(cap, name="relu_1")(x)
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=not norms, name="deep")(
        x
    )
    x = layers.BatchNormalization(name="norm_2")(x) if norms else x
    x = layers.ReLU(cap, name="relu_2")(x)
    x = layers.Conv2D(5, 1, name="project")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    random = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.5, weight.shape))
        if "variance" in weight.path:
            weight.assign(random.uniform(0.5, 2, weight.shape))
        if "gamma" in weight.path:
            weight.assign(np.exp(random.normal(0, 2, weight.shape)))
    return model


def images(count=32):
    return np.random.default_rng(0).normal(0, 1, (count, 8, 8, 3)).astype("float32")


def folded(model, name, norm):
    """Largest folded weight of each output channel, in this file's own words."""
    kernel = np.abs(np.asarray(model.get_layer(name).kernel, "float64"))
    if kernel.ndim == 4 and name == "deep":
        ranges = kernel.max(axis=(0, 1)).reshape(-1)
    else:
        ranges = kernel.reshape(-1, kernel.shape[-1]).max(axis=0)
    if norm is None:
        return ranges
    layer = model.get_layer(norm)
    sigma = np.sqrt(np.asarray(layer.moving_variance, "float64") + layer.epsilon)
    return ranges * np.abs(np.asarray(layer.gamma)) / sigma


@pytest.mark.parametrize("norms", [False, True])
def test_function_stays_and_ranges_are_equal(norms):
    model, x = uneven(norms=norms), images()
    weights = [np.array(w) for w in model.weights]
    equal, report = equalize(model)
    assert report.pairs == (
        ("expand", "deep"),
        ("deep", "project"),
        ("project", "head"),
    )
    assert set(report.skipped) == {"head"}
    assert report.uncapped == ()
    np.testing.assert_allclose(equal(x), model(x), rtol=1e-4, atol=1e-4)
    for old, new in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    deep = np.abs(equal.get_layer("deep").kernel).max(axis=(0, 1, 3))
    project = np.abs(equal.get_layer("project").kernel).max(axis=(0, 1, 3))
    head = np.abs(equal.get_layer("head").kernel).max(axis=1)
    first = folded(equal, "expand", "norm_1" if norms else None)
    second = folded(equal, "deep", "norm_2" if norms else None)
    for ours, theirs in ((first, deep), (second, project)):
        np.testing.assert_allclose(ours, theirs, rtol=5e-3)
    np.testing.assert_allclose(folded(equal, "project", None), head, rtol=5e-3)


def test_one_pair_is_the_closed_form():
    """`s = sqrt(r1 r2) / r2` once, of ranges that then are both `sqrt(r1 r2)`."""
    inputs = x = keras.Input((4,))
    x = layers.Dense(6, activation="relu", name="a")(x)
    model = keras.Model(inputs, layers.Dense(3, name="b")(x))
    r1 = np.abs(model.get_layer("a").kernel).max(axis=0)
    r2 = np.abs(model.get_layer("b").kernel).max(axis=1)
    equal, _ = equalize(model)
    both = np.sqrt(r1 * r2)
    np.testing.assert_allclose(
        np.abs(equal.get_layer("a").kernel).max(axis=0), both, rtol=1e-5
    )
    np.testing.assert_allclose(
        np.abs(equal.get_layer("b").kernel).max(axis=1), both, rtol=1e-5
    )


def test_caps_are_skipped_and_told():
    model = uneven(cap=6.0)
    equal, report = equalize(model)
    assert report.pairs == (("project", "head"),)
    assert {n for n, reason in report.skipped.items() if "cap at 6" in reason} == {
        "expand",
        "deep",
    }
    np.testing.assert_allclose(equal(images()), model(images()), rtol=1e-4, atol=1e-4)
    for name in ("norm_1", "norm_2"):
        np.testing.assert_array_equal(
            equal.get_layer(name).gamma, model.get_layer(name).gamma
        )


@pytest.mark.parametrize("spelling", ["layer", "activation", "inside"])
def test_caps_go_when_asked(spelling):
    """As if the network had been written with ReLU."""

    def build(cap):
        inputs = x = keras.Input((8, 8, 3))
        name = "relu6" if cap else "relu"
        inside = name if spelling == "inside" else None
        x = layers.Conv2D(4, 1, activation=inside, name="first")(x)
        if spelling == "layer":
            x = layers.ReLU(cap, name="act")(x)
        if spelling == "activation":
            x = layers.Activation(name, name="act")(x)
        model = keras.Model(inputs, layers.Conv2D(4, 1, name="second")(x))
        random = np.random.default_rng(8)
        for weight in model.weights:
            weight.assign(random.normal(0, 4, weight.shape))
        return model

    equal, report = equalize(build(6.0), relu6="relu")
    assert report.uncapped == ("first",)
    assert report.pairs == (("first", "second"),)
    plain = np.asarray(build(None)(images()))
    np.testing.assert_allclose(equal(images()), plain, rtol=1e-4, atol=1e-3)
    assert not np.allclose(build(6.0)(images()), plain, atol=0.1)
    again = keras.models.model_from_json(equal.to_json())
    again.set_weights(equal.get_weights())
    np.testing.assert_allclose(again(images()), plain, rtol=1e-4, atol=1e-3)


def test_a_relu6_that_is_an_operation_stays():
    inputs = keras.Input((8, 8, 3))
    x = ops.relu6(layers.Conv2D(4, 1, name="first")(inputs))
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="second")(x))
    equal, report = equalize(model, relu6="relu")
    assert report.pairs == ()
    assert "is an operation" in report.skipped["first"]
    np.testing.assert_allclose(equal(images()), model(images()), atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"operations"}))
def test_functions_of_all_shapes_stay(name):
    model = MODELS[name]()
    x = batch_of(model)
    equal, report = equalize(model)
    np.testing.assert_allclose(flat(equal(x)), flat(model(x)), rtol=2e-4, atol=2e-4)
    searchable = set(BitwidthPolicy.uniform(model, 8, 8))
    assert {first for first, _ in report.pairs} | set(report.skipped) == searchable


def test_what_cannot_be_scaled_says_why():
    _, report = equalize(MODELS["residual"]())
    assert "2 calls read it" in report.skipped["first"]
    assert "'add' of kind Add" in report.skipped["inner"]
    _, report = equalize(MODELS["shared_layer"]())
    assert "more than once" in report.skipped["shared"]
    _, report = equalize(MODELS["strides_dilation_groups"]())
    assert "has groups" in report.skipped["dilated"]
    _, report = equalize(MODELS["gates"]())
    assert "silu" in report.skipped["first"] or "swish" in report.skipped["first"]
    with pytest.raises(ValueError, match="Did you mean 'skip'"):
        equalize(MODELS["residual"](), relu6="skp")


def test_dead_channels_stay_finite():
    model = uneven(norms=False)
    for name, part in (("expand", np.s_[..., 1]), ("project", np.s_[:, :, 2])):
        kernel = np.array(model.get_layer(name).kernel)
        kernel[part] = 0
        model.get_layer(name).kernel.assign(kernel)
    equal, _ = equalize(model)
    np.testing.assert_allclose(equal(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_quantized_networks_come_nearer_and_ship(tmp_path):
    model, x, errors = uneven(), images(), []
    for made in (model, equalize(model)[0]):
        policy = BitwidthPolicy.uniform(made, 8, 6, pinned={})
        student = gmpq.quantize_model(made, policy)
        gmpq.calibrate(student, x)
        errors.append(float(np.square(student(x) - np.asarray(model(x))).mean()))
    assert errors[1] < 0.7 * errors[0]
    check_ships(student, x, tmp_path)
