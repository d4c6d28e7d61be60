"""Quantizers that a user registers: theirs is the function that is computed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import ExportError, export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.layers import MixedConv2D, QuantConv2D
from gmpq_tf.quantizers import (
    INPUT_QUANTIZERS,
    KERNEL_QUANTIZERS,
    InputQuantizer,
    KernelQuantizer,
)
from gmpq_tf.quantizers.lsq import lsq
from gmpq_tf.quantizers.max_abs import max_abs
from gmpq_tf.transform.calibrate import Observer, best_grid

X = np.random.default_rng(0).normal(1, 2, (2, 6, 6, 3)).astype("float32")
KERNEL = np.random.default_rng(1).normal(0, 0.3, (3, 3, 3, 4)).astype("float32")


def tripled(x, input_range, bits, signed=False):
    """LSQ with three times its gradient of x: same values."""
    q = lsq(x, input_range, bits, signed)
    return q + 2 * (x - tf.stop_gradient(x))


def halved(x, input_range, bits, signed=False):
    """Not on the grid."""
    return x * 0.5 + 0 * input_range


def floored(kernel, step, bits):
    """Codes rounded down, a learned step."""
    limit = 2 ** (bits - 1) - 1
    codes = tf.clip_by_value(tf.floor(kernel / step), -limit, limit)
    return (codes + kernel - tf.stop_gradient(kernel)) * step


def mean_based(kernel, bits, axes):
    """A step found from the mean weight, with the gradient of identity."""
    limit = 2 ** (bits - 1) - 1
    step = 2 * tf.reduce_mean(tf.abs(kernel), axis=axes, keepdims=True) / limit**0.5
    codes = tf.clip_by_value(tf.round(kernel / step), -limit, limit)
    return kernel + tf.stop_gradient(codes * step - kernel)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, function in {"tripled": tripled, "halved": halved}.items():
        monkeypatch.setitem(INPUT_QUANTIZERS, name, function)
    for name, function in {"floored": floored, "mean_based": mean_based}.items():
        monkeypatch.setitem(KERNEL_QUANTIZERS, name, function)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("function", [tripled, halved])
def test_an_input_quantizer_is_called_forward_and_backward(function, signed):
    quantizer = InputQuantizer(4, signed, function.__name__)
    quantizer.build(X.shape)
    quantizer.set_branch(0, 0.25)
    limit = 7 if signed else 15
    x = tf.constant(X)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        found = quantizer(x)
        expected = function(x, 0.25 * limit, 4, signed)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(found, x), tape.gradient(expected, x))
    assert tape.gradient(found, quantizer.log2_range.value) is not None


def test_the_same_values_keep_the_zero_of_inputs_and_powers_of_two():
    for options in ({"signed": None}, {"signed": True, "power_of_two": True}):
        ours, mine = (
            InputQuantizer(4, method=m, **options) for m in ("lsq", "tripled")
        )
        for quantizer in (ours, mine):
            quantizer.build(X.shape)
            quantizer.set_branch(0, 0.3, 5)
        np.testing.assert_allclose(mine(X), ours(X), atol=1e-5)


def test_mixtures_weigh_the_registered_function():
    quantizer = InputQuantizer((2, 4), True, "halved")
    quantizer.build(X.shape)
    found = quantizer(X, probabilities=tf.constant([0.25, 0.75]))
    np.testing.assert_allclose(found, X / 2, rtol=1e-5)
    kernels = KernelQuantizer((2, 4), "mean_based", name="k")
    kernels.build(KERNEL.shape)
    expected = [mean_based(KERNEL, bits, (0, 1, 2)) for bits in (2, 4)]
    found = kernels(KERNEL, probabilities=tf.constant([0.25, 0.75]))
    np.testing.assert_allclose(found, 0.25 * expected[0] + 0.75 * expected[1], 1e-5)


@pytest.mark.parametrize("method", ["floored", "mean_based"])
def test_a_kernel_quantizer_is_called_and_gives_its_codes(method):
    quantizer = KernelQuantizer(4, method)
    quantizer.build(KERNEL.shape)
    quantizer.fit_steps(KERNEL)
    kernel = tf.constant(KERNEL)
    if method == "floored":
        expected = floored(kernel, tf.constant(quantizer.step(KERNEL)), 4)
    else:
        expected = mean_based(kernel, 4, (0, 1, 2))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        found = quantizer(kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    slope = tape.gradient(found, kernel)
    wanted = np.broadcast_to(quantizer.step(KERNEL), KERNEL.shape)
    np.testing.assert_allclose(slope, wanted if method == "floored" else 1.0, 1e-5)
    codes = quantizer.codes(KERNEL)
    assert codes.dtype == np.int8 and np.abs(codes).max() <= 7
    np.testing.assert_allclose(codes * quantizer.step(KERNEL), expected, atol=1e-6)


def test_steps_suit_the_function_they_are_for():
    """Steps fitted for rounding down are others than for rounding to the nearest."""
    steps = []
    for method in ("floored", "lsq"):
        quantizer = KernelQuantizer(4, method)
        quantizer.build(KERNEL.shape)
        quantizer.fit_steps(KERNEL)
        error = np.square(quantizer(KERNEL) - KERNEL).mean()
        other = quantizer.log2_step + 0.3
        quantizer.log2_step.assign(other)
        assert np.square(quantizer(KERNEL) - KERNEL).mean() > error
        steps.append(np.asarray(other))
    assert not np.allclose(*steps)


def test_calibration_measures_the_error_of_the_function(monkeypatch):
    def wide(x, input_range, bits, signed=False):
        return lsq(x, 2 * input_range, bits, signed)

    monkeypatch.setitem(INPUT_QUANTIZERS, "wide", wide)
    observer = Observer(0)
    observer(X)
    ours, _ = best_grid(observer, InputQuantizer(4, True, "lsq"), 0)
    mine, _ = best_grid(observer, InputQuantizer(4, True, "wide"), 0)
    assert mine == pytest.approx(ours / 2, rel=0.1)


def test_a_replaced_name_is_a_registered_function(monkeypatch):
    monkeypatch.setitem(INPUT_QUANTIZERS, "lsq", halved)
    quantizer = InputQuantizer(4, True, "lsq")
    quantizer.build(X.shape)
    np.testing.assert_allclose(quantizer(X), X / 2, rtol=1e-6)


def test_layers_compute_with_both():
    conv = keras.layers.Conv2D(4, 3, use_bias=False)
    conv.build(X.shape)
    conv.kernel.assign(mean_based(KERNEL, 4, (0, 1, 2)))
    for training in (False, True):
        layer = QuantConv2D(
            4,
            3,
            use_bias=False,
            input_quantizer=InputQuantizer(4, True, "halved"),
            kernel_quantizer=KernelQuantizer(4, "mean_based"),
        )
        layer.build(X.shape)
        layer.kernel.assign(KERNEL)
        found = layer(X, training=training)
        np.testing.assert_allclose(found, conv(X / 2), atol=1e-5)
    mixed = MixedConv2D(
        4,
        3,
        input_quantizer=InputQuantizer((2, 4), True, "halved"),
        kernel_quantizer=KernelQuantizer((2, 4), "floored"),
    )
    mixed.build(X.shape)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(mixed(X, training=True) ** 2)
    assert all(g is not None for g in tape.gradient(loss, [mixed.kernel.value]))


@pytest.mark.parametrize(
    ("registry", "function", "missing"),
    [
        (INPUT_QUANTIZERS, lambda x: x, "x, input_range, bits, signed"),
        (KERNEL_QUANTIZERS, lambda kernel, bits: kernel, "kernel, bits, axes"),
        (KERNEL_QUANTIZERS, lambda kernel, step: kernel, "kernel, step, bits"),
        (INPUT_QUANTIZERS, lambda x, r, b, s: tf.reduce_sum(x), "shape"),
    ],
)
def test_what_cannot_be_called_is_refused_at_once(
    monkeypatch, registry, function, missing
):
    monkeypatch.setitem(registry, "bad", function)
    make = InputQuantizer if registry is INPUT_QUANTIZERS else KernelQuantizer
    with pytest.raises(ValueError, match=missing):
        make(4, method="bad")


def test_codes_off_every_grid_are_refused(monkeypatch):
    monkeypatch.setitem(KERNEL_QUANTIZERS, "none", lambda kernel, bits, axes: kernel)
    quantizer = KernelQuantizer(4, "none")
    assert not quantizer.on_grid
    with pytest.raises(ValueError, match="multiples of a step"):
        quantizer.codes(KERNEL)


def test_models_are_searched_and_quantized_with_them():
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    search = gmpq.PolicySearch(
        model, input_quantizer="tripled", kernel_quantizer="mean_based", eta=0.0
    )
    search.compile(loss="mse", jit_compile=False)
    search.fit(X, np.zeros((2, 2)), verbose=0)
    policy = gmpq.BitwidthPolicy.uniform(model, 8, 8)
    student = gmpq.quantize_model(model, policy, "tripled", "mean_based")
    gmpq.calibrate(student, [X])
    difference = np.asarray(student(X)) - np.asarray(model(X))
    assert np.abs(difference).max() < 0.1 * np.abs(model(X)).max()


def student_with(*methods):
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    policy = gmpq.BitwidthPolicy.uniform(model, 4, 8)
    student = gmpq.quantize_model(model, policy, *methods)
    gmpq.calibrate(student, [X])
    gmpq.snap_biases(student)
    return student


def test_students_export_with_the_codes_of_the_function(tmp_path):
    student = student_with("tripled", "floored")
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=X)
    assert all(layer.codes_equal for layer in report.layers)
    np.testing.assert_allclose(
        TFLiteModel(tmp_path / "m.tflite").predict(X), student(X), atol=1e-4
    )


def test_what_rounds_to_no_code_is_not_exported(tmp_path):
    student = student_with("halved", "floored")
    with pytest.raises(ExportError, match=r"'conv2d.*quantized by 'halved'"):
        export_tflite(student, tmp_path / "m.tflite", verify_data=X)


def test_the_built_in_function_under_another_name_is_fused(monkeypatch):
    monkeypatch.setitem(KERNEL_QUANTIZERS, "again", max_abs)
    assert KernelQuantizer(4, "again").fused
