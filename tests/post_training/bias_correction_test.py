"""Corrected sums have the float network's means."""

import keras
import numpy as np
import pytest
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.post_training import correct_biases
from gmpq_tf.transform.calibrate import CalibrationError
from tests.post_training.shipping import check_ships
from tests.transform.models import MODELS, batch_of


def student_of(model, x, bits=(3, 4)):
    policy = BitwidthPolicy.uniform(model, *bits, pinned={})
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, x)
    return student


def network(center=True, scale=True, inside=False):
    """Convolutions with and without BatchNormalization, depthwise, a residual."""
    inputs = x = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(
        6, 3, padding="same", activation="relu" if inside else None, name="first"
    )(x)
    x = a = x if inside else layers.ReLU(name="relu_1")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="deep")(x)
    x = layers.BatchNormalization(name="norm", center=center, scale=scale)(x)
    x = layers.ReLU(name="relu_2")(x)
    x = layers.Conv2D(6, 1, name="point")(x)
    x = layers.Add(name="add")([a, x])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    random = np.random.default_rng(4)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.4, weight.shape))
        if "variance" in weight.path or "gamma" in weight.path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def images(count=64, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1, (count, 8, 8, 3)).astype("f4")


def means(model, name, x):
    tapped = keras.Model(model.inputs, model.get_layer(name).output)
    values = np.asarray(tapped(x), "float64")
    return values.reshape(-1, values.shape[-1]).mean(axis=0)


def test_linear_layer_on_exact_inputs_has_the_analytic_shift():
    """Pixels lie on their grid, so the shift is `(W - q(W))^T E[x]`."""
    inputs = keras.Input((12,))
    model = keras.Model(inputs, layers.Dense(5, name="head")(inputs))
    random = np.random.default_rng(2)
    x = random.integers(0, 256, (100, 12)).astype("float32")
    x[0], x[1] = 0, 255
    student = student_of(model, x, (2, 8))
    layer = student.get_layer("head")
    codes = layer.kernel_quantizer.codes(layer.kernel).astype("float64")
    step = np.asarray(layer.kernel_quantizer.step(layer.kernel), "float64")
    kernel = np.asarray(model.get_layer("head").kernel, "float64")
    shifts = correct_biases(student, model, x)
    expected = x.astype("float64").mean(axis=0) @ (kernel - codes * step)
    np.testing.assert_allclose(shifts["head"], expected, rtol=1e-3, atol=2e-3)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(
        np.asarray(layer.bias), expected, rtol=1e-3, atol=2e-3
    )  # which was zero


@pytest.mark.parametrize(("center", "scale"), [(True, True), (False, True), (1, 0)])
def test_all_sums_have_the_float_means(center, scale):
    model, x = network(bool(center), bool(scale)), images()
    student = student_of(model, x)
    taps = ["first", "norm", "point", "head"]
    before = [np.abs(means(student, n, x) - means(model, n, x)).max() for n in taps]
    kernels = [np.array(w) for w in student.weights if "kernel" in w.path]
    shifts = correct_biases(student, model, x)
    assert set(shifts) == {"first", "deep", "point", "head"}
    for name, old in zip(taps, before, strict=True):
        assert old > 1e-3
        np.testing.assert_allclose(
            means(student, name, x), means(model, name, x), atol=2e-5
        )
    now = [w for w in student.weights if "kernel" in w.path]
    for old, new in zip(kernels, now, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_relu_inside_the_layer_is_no_other_network():
    x, found = images(), []
    for inside in (False, True):
        model = network(inside=inside)
        student = student_of(model, x)
        found.append(correct_biases(student, model, x))
        activation = student.get_layer("first").activation
        assert (activation is keras.activations.relu) == inside
    for name, shift in found[0].items():
        np.testing.assert_allclose(found[1][name], shift, atol=1e-5)


def test_twice_is_once():
    model, x = network(), images()
    student = student_of(model, x)
    correct_biases(student, model, x)
    again = correct_biases(student, model, x)
    assert max(np.abs(shift).max() for shift in again.values()) < 2e-5


@pytest.mark.parametrize("name", ["nested", "separable_layer", "gates", "dictionaries"])
def test_models_of_other_shapes(name):
    model = MODELS[name]()
    x = batch_of(model)
    student = student_of(model, x)
    shared = name == "separable_layer"
    if shared:
        with pytest.warns(UserWarning, match="twice"):
            shifts = correct_biases(student, model, x)
    else:
        shifts = correct_biases(student, model, x)
    assert shifts
    assert all(np.isfinite(shift).all() for shift in shifts.values())


def test_layers_without_a_place_are_named():
    inputs = x = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="bare")(x)
    x = layers.ReLU()(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="last")(x))
    student = student_of(model, images())
    with pytest.warns(UserWarning, match="not corrected: bare"):
        assert set(correct_biases(student, model, images())) == {"last"}


def test_student_ships(tmp_path):
    model, x = network(), images()
    student = student_of(model, x)
    correct_biases(student, model, x)
    check_ships(student, x, tmp_path)


def test_wrong_models_are_refused():
    model, x = network(), images(8)
    student = student_of(model, x)
    with pytest.raises(CalibrationError, match="without quantizers"):
        correct_biases(model, model, x)
    with pytest.raises(CalibrationError, match="holds quantizers"):
        correct_biases(student, student, x)
    with pytest.raises(CalibrationError, match="a hypernet"):
        correct_biases(gmpq.build_hypernet(model), model, x)
    with pytest.raises(CalibrationError, match="only one of them has"):
        correct_biases(student, MODELS["plain"](), x)
    raw = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))
    with pytest.raises(CalibrationError, match="has not"):
        correct_biases(raw, model, x)
    with pytest.raises(ValueError, match="at least one image"):
        correct_biases(student, model, x[:0])
