"""RQ: probabilities, draws and gradients in NumPy, and a network that is exported."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer
from gmpq_tf.quantizers.rq import SIGMA, drawn, mean_code
from tests.quantizers.apot_test import X, float_model

RANDOM = np.random.default_rng(0)


def chances(v, low, high):
    """P(c) of all codes, by the paper's equation."""
    codes = np.arange(low, high + 1)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    mass = sigmoid((codes + 0.5 - v) / SIGMA) - sigmoid((codes - 0.5 - v) / SIGMA)
    return codes, mass / mass.sum()


@pytest.mark.parametrize(("low", "high"), [(0, 15), (-3, 3), (-1, 1), (0, 255)])
def test_mean_codes_are_those_of_the_equation(low, high):
    values = np.linspace(low, high, 23)
    means, slopes = mean_code(tf.constant(values), *map(np.float64, (low, high)))
    expected = [np.dot(*chances(v, low, high)) for v in values]
    np.testing.assert_allclose(means, expected, atol=3e-3)
    h = 1e-5
    for v, slope in zip(values[1:-1], slopes.numpy()[1:-1], strict=True):
        near = [np.dot(*chances(v + side, low, high)) for side in (-h, h)]
        assert slope == pytest.approx((near[1] - near[0]) / (2 * h), abs=0.02)
    # In the middle of the grid the mean is the value itself, on codes and between two.
    middle = np.arange(np.ceil(low + 2.5) * 2, np.floor(high - 2.5) * 2) / 2
    if middle.size:
        means, _ = mean_code(tf.constant(middle), *map(np.float64, (low, high)))
        np.testing.assert_allclose(means, middle, atol=2e-3)


def test_draws_have_these_probabilities():
    for v in (0.3, 1.5, 2.9):
        x = tf.fill([20_000], np.float32(v * 0.25))
        steps = [tf.constant(c) for c in (0.25, 0.0, 3.0)]
        values = drawn(x, *steps, tf.constant([3.0, 1.0])).numpy() / 0.25
        codes, expected = chances(v, 0, 3)
        shares = [np.mean(np.abs(values - c) < 1e-3) for c in codes]
        np.testing.assert_allclose(shares, expected, atol=0.012)
        again = drawn(x, *steps, tf.constant([3.0, 1.0])).numpy() / 0.25
        np.testing.assert_array_equal(values, again)
        other = drawn(x, *steps, tf.constant([3.0, 1.0]), 1).numpy() / 0.25
        assert np.any(values != other)


def test_gradients_are_those_of_the_mean():
    x = RANDOM.uniform(-0.3, 1.2, 40)
    step, low, high = 0.25, 0.0, 3.0

    def mean(x, step):
        codes, expected = chances(np.clip(x / step, low, high), low, high)
        return codes @ expected

    grids = [tf.constant(c, tf.float64) for c in (step, low, high)]
    v = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([v, grids[0]])
        values = drawn(v, *grids, tf.constant([1.0, 2.0]))
    slopes = tape.gradient(values, v).numpy()
    of_step, values = tape.jacobian(values, grids[0]).numpy(), values.numpy()
    h = 1e-5
    for i, each in enumerate(x):
        if min(abs(each), abs(each - high * step)) < 1e-3:
            continue
        expected = (mean(each + h, step) - mean(each - h, step)) / (2 * h) * step
        assert slopes[i] == pytest.approx(expected, abs=0.02)
        # The code that was drawn, and what the mean changes.
        slope = (mean(each, step + h) - mean(each, step - h)) / (2 * h) * step
        assert of_step[i] == pytest.approx(values[i] / step + slope, abs=0.05)


@pytest.mark.parametrize("bits", [4, (2, 4)])
def test_layers_draw_in_training_alone(bits):
    keras.utils.set_random_seed(0)
    kernel = RANDOM.normal(size=(30, 5)).astype("float32")
    x = np.abs(RANDOM.normal(size=(6, 30))).astype("float32")
    pi = None if bits == 4 else tf.constant([0.3, 0.7])
    for kind, plain, values, options in (
        (KernelQuantizer, "lsq", kernel, {"shared_axes": (0,)}),
        (InputQuantizer, "lsq", x, {}),
    ):
        found = []
        for method in ("rq", plain):
            layer = kind(bits, method=method, **options)
            layer.build(values.shape)
            if kind is KernelQuantizer:
                layer.fit_steps(values)
            layers = [layer(values, probabilities=pi, training=t) for t in (0, 1, 1)]
            found.append([np.asarray(each) for each in layers])
        (still, one, two), (nearest, *_) = found
        np.testing.assert_array_equal(still, nearest)
        assert np.any(one != two) and np.any(one != still)
        assert np.mean(one != still) < 0.8
        error = np.mean([np.square(v - values).mean() for v in (one, two)])
        assert error < 12 * np.square(still - values).mean() + 0.1


@pytest.mark.slow
def test_a_network_is_trained_resumed_and_exported(tmp_path):
    keras.utils.set_random_seed(0)
    model = float_model()
    policy = gmpq.BitwidthPolicy.uniform(model, 3, 4, pinned={})
    student = gmpq.quantize_model(model, policy, "rq", "rq")
    gmpq.calibrate(student, X)
    student.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    y = RANDOM.normal(size=(16, 4))
    student.fit(X, y, epochs=2, batch_size=8, verbose=0)
    counts = {
        v.path: float(v[1]) for v in student.variables if v.path.endswith("draws")
    }
    assert len(counts) >= 8 and set(counts.values()) == {4.0}
    gmpq.snap_biases(student, X)
    student.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(X), student(X))
    np.testing.assert_array_equal(loaded(X, training=True), student(X, training=True))
    report = export_tflite(loaded, tmp_path / "m.tflite", verify_data=X)
    assert all(layer.codes_equal for layer in report.layers)
    # A search may draw too, but not round once.
    options = {"kernel_quantizer": "rq", "input_quantizer": "rq", "eta": 0.0}
    search = gmpq.PolicySearch(model, budget="W3A3", **options)
    search.compile(loss="mse", jit_compile=False)
    search.fit(X, y, batch_size=16, verbose=0)
    assert set(search.policy()) == {"first", "depthwise", "pointwise", "last"}
    with pytest.raises(ValueError, match="draws codes in training"):
        gmpq.PolicySearch(model, relaxation="expected_grid", **options)


def test_tf_keras_refuses_rows_that_draw():
    fake = pytest.importorskip("gmpq_tf.export.tfmot.fake_quantizers")
    with pytest.raises(ValueError, match="Received: method='rq'"):
        fake.KernelFakeQuantizer(4, "rq", (0, 1, 2))
