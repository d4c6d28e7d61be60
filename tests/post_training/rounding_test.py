"""Learned rounding against all roundings there are."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.post_training import learn_rounding
from gmpq_tf.post_training.rounding import power_at, soft_rounding, soft_start
from gmpq_tf.transform.calibrate import CalibrationError
from tests.post_training.shipping import check_ships
from tests.transform.models import MODELS, batch_of


def student_of(model, x, bits=(3, 8), **kwargs):
    policy = BitwidthPolicy.uniform(model, *bits, pinned={})
    student = gmpq.quantize_model(model, policy, **kwargs)
    gmpq.calibrate(student, x)
    return student


def network():
    inputs = x = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="deep")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(6.0, name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    random = np.random.default_rng(4)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.5, weight.shape))
        if "variance" in weight.path or "gamma" in weight.path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def images(count=48, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1, (count, 8, 8, 3)).astype("f4")


def correlated(count=200, size=8):
    """Pixels, on their grid, that go up and down together: where nearest is bad."""
    random = np.random.default_rng(1)
    base = random.uniform(20, 235, (count, 1))
    x = np.round(np.clip(base + random.normal(0, 12, (count, size)), 0, 255))
    x[0], x[1] = 0, 255
    return x.astype("float32")


def test_near_the_best_of_all_roundings():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(1, name="head")(inputs))
    # All a little less than half a step above a code: nearest rounding, always down,
    # adds up to three steps too few on pixels that go up and down together.
    step = 0.5
    above = np.array([0.42, 0.4, 0.45, 0.38, 0.41, 0.44, 0.39, 0.43])
    kernel = ((np.array([-2, -1, 0, 1, 1, 0, -1, -2]) + above) * step)[:, None]
    kernel = kernel.astype("float32")
    model.get_layer("head").kernel.assign(kernel)
    x = correlated()
    student = student_of(model, x, (3, 8))
    layer = student.get_layer("head")
    quantizer = layer.kernel_quantizer
    quantizer.log2_step.assign(np.full(quantizer.log2_step.shape, -1.0))
    targets = x.astype("float64") @ kernel
    low = np.floor(kernel.ravel() / step)

    def error(up):
        codes = np.clip(low + up, -3, 3)
        return np.square(x @ (codes * step)[:, None] - targets).mean()

    best = min(error(np.array(up)) for up in itertools.product((0, 1), repeat=8))
    nearest = error(np.round(kernel.ravel() / step) - low)
    found = learn_rounding(student, model, x, steps=300)["head"]
    assert found.nearest_error == pytest.approx(nearest, rel=1e-3)
    assert best * 0.999 <= found.error <= found.nearest_error
    assert found.error - best < 0.1 * (nearest - best)
    assert found.changed > 0
    codes = layer.kernel_quantizer.codes(layer.kernel).ravel()
    assert error(codes - low) == pytest.approx(found.error, rel=1e-3)


def test_kernels_end_on_the_grid_beside_where_they_were():
    model, x = network(), images()
    student = student_of(model, x)
    before = {
        n: np.array(student.get_layer(n).kernel) for n in ("first", "deep", "head")
    }
    others = [np.array(w) for w in student.weights if not w.path.endswith("/kernel")]
    found = learn_rounding(student, model, x, steps=60, batch_size=16)
    assert set(found) == set(before)
    assert any(result.changed > 0 for result in found.values())
    for name, kernel in before.items():
        layer = student.get_layer(name)
        step = np.asarray(layer.kernel_quantizer.step(kernel))
        codes = layer.kernel_quantizer.codes(layer.kernel)
        np.testing.assert_array_equal(np.asarray(layer.kernel), codes * step)
        assert np.abs(codes).max() <= 3
        assert (np.abs(codes - np.clip(kernel / step, -3, 3)) <= 1 + 1e-4).all()
        assert found[name].error <= found[name].nearest_error
    now = [w for w in student.weights if not w.path.endswith("/kernel")]
    for old, new in zip(others, now, strict=True):
        np.testing.assert_array_equal(old, new)


def test_kernels_of_many_bits_keep_their_weights():
    model, x = network(), images()
    policy = BitwidthPolicy.uniform(model, 3, 8, pinned={"first": (8, 8)})
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, x)
    found = learn_rounding(student, model, x, steps=20, most_bits=4)
    assert set(found) == {"deep", "head"}
    kernels = (m.get_layer("first").kernel for m in (student, model))
    np.testing.assert_array_equal(*kernels)


def test_errors_are_those_of_the_models():
    """The last unit reads a student that is rounded already, and so does this."""
    model, x = network(), images()
    student = student_of(model, x)
    found = learn_rounding(student, model, x, steps=40)["head"]
    tapped = keras.Model(student.inputs, student.get_layer("head").output)
    measured = np.square(np.asarray(tapped(x)) - np.asarray(model(x))).mean()
    assert measured == pytest.approx(found.error, rel=1e-3)


def test_one_step_is_no_worse_than_nearest():
    model, x = network(), images(16)
    for result in learn_rounding(student_of(model, x), model, x, steps=1).values():
        assert result.error <= result.nearest_error


@pytest.mark.slow
def test_the_seed_decides():
    model, x = network(), images()
    kernels = []
    for seed in (0, 0, 1):
        student = student_of(model, x, (2, 8))
        learn_rounding(student, model, x, steps=150, batch_size=2, seed=seed)
        kernels.append(
            np.concatenate([np.ravel(w) for w in student.weights if "kernel" in w.path])
        )
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", ["nested", "separable_layer", "gates", "residual"])
def test_models_of_other_shapes(name):
    model = MODELS[name]()
    x = batch_of(model, 8)
    student = student_of(model, x)
    if name == "separable_layer":
        with pytest.warns(UserWarning, match="twice"):
            found = learn_rounding(student, model, x, steps=3)
    else:
        found = learn_rounding(student, model, x, steps=3)
    assert found
    assert all(r.error <= r.nearest_error for r in found.values())


def test_student_ships(tmp_path):
    model, x = network(), images()
    student = student_of(model, x)
    learn_rounding(student, model, x, steps=40)
    check_ships(student, x, tmp_path)


@pytest.mark.parametrize("method", ["max_abs", "apot"])
def test_other_grids_are_refused(method):
    model, x = network(), images(8)
    student = student_of(model, x, (4, 8), kernel_quantizer=method)
    with pytest.raises(CalibrationError, match=f"Received: .*{method}"):
        learn_rounding(student, model, x)


@pytest.mark.parametrize("argument", ["steps", "batch_size"])
def test_numbers_below_one_are_refused(argument):
    model, x = network(), images(8)
    with pytest.raises(ValueError, match=f"Received: {argument}=0"):
        learn_rounding(student_of(model, x), model, x, **{argument: 0})


def test_soft_rounding_and_its_inverse():
    rest = np.linspace(0, 1, 11)
    np.testing.assert_allclose(soft_rounding(soft_start(rest)), rest, atol=1e-6)
    assert float(soft_rounding(5.0)) == 1
    assert float(soft_rounding(-5.0)) == 0
    assert power_at(0, 100) == power_at(20, 100) == 20
    assert power_at(100, 100) == 2
