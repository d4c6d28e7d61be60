import gc

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.quantizers import INPUT_QUANTIZERS, fused
from gmpq_tf.quantizers.mixture import STEP_GRADIENTS, mixture
from tests.quantizers.memory import kept_for_backward

BRANCHES = [(3,), (2, 3, 4), (8, 2), (2, 3, 4, 5, 6, 7, 8)]


def arguments(branches, signed=False, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(0, 1.5, (6, 4, 4, 3))
    x = x if signed else np.maximum(x, 0)  # half of them on the edge, as after ReLU
    probabilities = random.uniform(0.1, 1, branches)
    return [
        tf.constant(x, "float32"),
        tf.constant(random.uniform(1, 2.5, branches), "float32"),
        tf.zeros(branches),
        tf.constant(probabilities / probabilities.sum(), "float32"),
    ]


def pure_sum(bits, signed, method):
    """Equation 5, written as it stands."""

    def call(x, ranges, zeros, probabilities):
        weights = probabilities if len(bits) > 1 else tf.ones([1])
        terms = [
            weights[j] * INPUT_QUANTIZERS[method](x, ranges[j], b, signed)
            for j, b in enumerate(bits)
        ]
        return tf.add_n(terms)

    return call


def value_and_gradients(function, inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
        loss = tf.reduce_sum(y * tf.stop_gradient(tf.cos(3 * inputs[0])))
    slopes = tape.gradient(loss, inputs, unconnected_gradients="zero")
    return y, slopes


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("method", sorted(STEP_GRADIENTS))
@pytest.mark.parametrize("bits", BRANCHES)
def test_value_and_gradients_are_those_of_the_sum(bits, method, signed):
    inputs = arguments(len(bits), signed)
    y, slopes = value_and_gradients(mixture(bits, signed, method, False, True), inputs)
    expected, expected_slopes = value_and_gradients(
        pure_sum(bits, signed, method), inputs
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(slope, expected_slope, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("method", sorted(STEP_GRADIENTS))
def test_second_derivatives_are_those_of_the_sum(method):
    bits = (2, 4, 8)
    inputs = arguments(3)

    def second(function):
        with tf.GradientTape() as outer:
            outer.watch(inputs)
            _, slopes = value_and_gradients(function, inputs)
            total = tf.add_n([tf.reduce_sum(tf.square(s)) for s in slopes])
        return outer.gradient(total, inputs, unconnected_gradients="zero")

    found = second(mixture(bits, False, method, False, True))
    assert all(np.isfinite(each).all() for each in found)
    # Of the slope of x, by the probabilities: an indicator, the same both ways.
    expected = second(pure_sum(bits, False, method))
    np.testing.assert_allclose(found[3], expected[3], rtol=1e-3)


def test_fixed_ranges_get_no_gradient():
    inputs = arguments(2)
    _, slopes = value_and_gradients(mixture((2, 4), False, "lsq", False, False), inputs)
    np.testing.assert_array_equal(slopes[1], 0.0)


def test_placed_zero_shifts_the_codes():
    x, ranges, _, probabilities = arguments(1, signed=True)
    quantize = mixture((4,), None, "lsq", False, False)
    y = quantize(x, ranges, tf.constant([5.0]), probabilities).numpy()
    step = ranges.numpy()[0] / np.float32(15)
    expected = np.floor(np.clip(x / step, -5, 10) + np.float32(0.5)) * step
    np.testing.assert_array_equal(y, expected)


def test_nested_steps_are_powers_of_two():
    x, ranges, zeros, probabilities = arguments(1)
    y = mixture((4,), False, "lsq", True, False)(x, ranges, zeros, probabilities)
    step = 2.0 ** np.round(np.log2(ranges.numpy()[0] / 15))
    np.testing.assert_array_equal(y, np.floor(np.clip(x / step, 0, 15) + 0.5) * step)


@pytest.fixture
def with_xla(monkeypatch):
    monkeypatch.setattr(fused, "USE_XLA", True)
    monkeypatch.setattr(fused, "CHUNK", 64)  # several chunks, and a rest
    yield
    gc.collect()


@pytest.mark.parametrize(
    ("signed", "method", "bits"), [(False, "lsq", (2, 3, 4)), (True, "pact", (8,))]
)
def test_xla_gives_the_same(with_xla, signed, method, bits):
    inputs = arguments(len(bits), signed)
    compiled = value_and_gradients(mixture(bits, signed, method, False, True), inputs)
    plain = value_and_gradients(pure_sum(bits, signed, method), inputs)
    np.testing.assert_allclose(compiled[0], plain[0], atol=1e-5)
    for slope, expected in zip(compiled[1], plain[1], strict=True):
        np.testing.assert_allclose(slope, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_keep_all_codes(dtype):
    codes = np.arange(256, dtype="float32").reshape(1, 256)
    quantize = mixture((8,), False, "lsq", False, True)
    inputs = [tf.cast(v, dtype) for v in (codes, [255.0], [0.0], [1.0])]
    np.testing.assert_array_equal(tf.cast(quantize(*inputs), "float32"), codes)


def test_memory_does_not_grow_with_the_branches():
    few, many = (2, 3), (2, 3, 4, 5, 6, 7, 8)
    kept = {
        bits: kept_for_backward(
            mixture(bits, False, "lsq", False, True), arguments(len(bits))
        )
        for bits in (few, many)
    }
    input_bytes = arguments(1)[0].numpy().nbytes
    assert kept[many] - kept[few] < 0.2 * input_bytes
    assert kept[many] < 1.5 * input_bytes
    naive = kept_for_backward(pure_sum(many, False, "lsq"), arguments(len(many)))
    assert naive > 5 * input_bytes  # the measure sees what it should
