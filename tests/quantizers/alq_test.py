"""ALQ kernels, from the paper's closed forms to the codes in a file."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.quantizers import KernelQuantizer
from gmpq_tf.quantizers.alq import alq, bases, nearest_sums, refitted, whole_numbers
from tests.quantizers.apot_test import X, float_model, kernel_types

RANDOM = np.random.default_rng(0)
COLUMNS = RANDOM.normal(size=(90, 4)).astype("float32")


def test_one_base_is_the_mean_and_the_sign():
    codes, steps = bases(tf.constant(COLUMNS), 1, 127)
    values = np.asarray(codes) * np.asarray(steps)
    expected = np.sign(COLUMNS) * np.abs(COLUMNS).mean(0)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sums_are_the_nearest_and_coordinates_least_squares(count):
    weights = COLUMNS.T
    coordinates = np.sort(RANDOM.uniform(0.1, 1, (4, count)))[:, ::-1].astype("float32")
    values, signs = nearest_sums(tf.constant(weights), tf.constant(coordinates))
    all_signs = np.array(list(itertools.product((-1, 1), repeat=count)))
    found = refitted(tf.constant(weights), tf.constant(coordinates))
    for column, own in enumerate(coordinates):
        sums = all_signs @ own
        apart = np.abs(weights[column][:, None] - sums)
        np.testing.assert_allclose(
            np.abs(values[column] - weights[column]), apart.min(1), atol=1e-5
        )
        own_signs = signs[column].numpy()
        np.testing.assert_allclose(own_signs @ own, values[column], atol=1e-5)
        least, *_ = np.linalg.lstsq(own_signs, weights[column])
        expected = np.sort(np.abs(least))[::-1]
        np.testing.assert_allclose(found[column], expected, atol=0.02)


def test_whole_coordinates_keep_within_their_sum():
    for count, limit in ((2, 7), (3, 7), (7, 127)):
        coordinates = -np.sort(-(RANDOM.exponential(size=(500, count)) ** 3))
        found = whole_numbers(tf.constant(coordinates, tf.float32), limit).numpy()
        np.testing.assert_array_equal(found, np.round(found))
        assert found.min() >= 1 and found.sum(1).max() <= limit


# Least mean squared errors of 2^b levels for N(0, 1): Max, "Quantizing for minimum
# distortion", 1960, table I. Of three bases that are all free the levels are that good.
LEAST = {2: 0.1175, 3: 0.03454, 4: 0.009497}


@pytest.mark.parametrize("bits", LEAST)
def test_bases_come_near_the_least_error_of_so_many_levels(bits):
    kernel = np.random.default_rng(1).normal(size=(144, 32)).astype("float32")
    errors = {}
    for method in ("alq", "lsq"):
        layer = KernelQuantizer(bits, method, (0,))
        layer.build(kernel.shape)
        layer.fit_steps(kernel)
        errors[method] = np.mean(np.square(layer(kernel) - kernel))
    assert 0.95 * LEAST[bits] < errors["alq"] < 1.25 * LEAST[bits]
    assert errors["alq"] < errors["lsq"]


def test_codes_of_few_bits_fit_int4():
    assert [alq.largest_code(b) for b in range(2, 8)] == [7, 7, 127, 127, 127, 127]
    with pytest.raises(gmpq.PolicyError, match="Received: bits=8"):
        alq.largest_code(8)
    message = r"'alq' has not.*first W8, last W8"
    with pytest.raises(gmpq.PolicyError, match=message):
        gmpq.PolicySearch(float_model(), kernel_quantizer="alq")


def test_kernels_at_the_ends_of_floats():
    scales = np.array([0, 1e-12, 1, 1e12], "float32")
    layer = KernelQuantizer((2, 4), "alq", (0,))
    layer.build(COLUMNS.shape)
    y = np.asarray(layer(COLUMNS * scales, probabilities=tf.constant([0.4, 0.6])))
    assert np.isfinite(y).all() and np.abs(y[:, 0]).max() < 1e-5
    for branch in range(2):
        steps = layer.step(COLUMNS * scales, branch)
        assert (steps > 0).all() and np.isfinite(steps).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "storage"), [(2, "smallest"), (3, "packed"), (4, "fast")]
)
def test_exported_codes_are_the_trained_ones(tmp_path, bits, storage):
    model = float_model()
    policy = gmpq.BitwidthPolicy.uniform(model, bits, 4, pinned={})
    student = gmpq.quantize_model(model, policy, kernel_quantizer="alq")
    gmpq.calibrate(student, X)
    student.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    student.fit(X, RANDOM.normal(size=(16, 4)), verbose=0)
    gmpq.snap_biases(student, X)
    student.save(tmp_path / "m.keras")
    student = keras.models.load_model(tmp_path / "m.keras")
    path = tmp_path / "m.tflite"
    report = export_tflite(student, path, verify_data=X, storage=storage)
    assert all(layer.codes_equal for layer in report.layers)
    assert ("INT4" in kernel_types(path)) == (bits <= 3)
