import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers import INPUT_QUANTIZERS, InputQuantizer

X = np.random.default_rng(0).normal(1, 2, (4, 6, 6, 3)).astype("float32")


def built(*args, **kwargs):
    layer = InputQuantizer(*args, **kwargs)
    layer.build(X.shape)
    return layer


def test_range_starts_at_relu6_and_uncalibrated():
    layer = built(4)
    assert layer.step() == pytest.approx(6 / 15)
    assert float(layer.calibrated) == 0
    layer.set_branch(0, 0.25)
    assert float(layer.calibrated) == 1
    assert layer.step() == pytest.approx(0.25)


def test_branches_are_weighed_by_their_probabilities():
    layer = built((2, 4))
    layer.set_branch(0, 1.0)
    layer.set_branch(1, 0.25)
    expected = 0.3 * np.floor(np.clip(X, 0, 3) + 0.5)
    expected += 0.7 * np.floor(np.clip(X * 4, 0, 15) + 0.5) / 4
    y = layer(X, probabilities=tf.constant([0.3, 0.7]))
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("signed", [False, True])
def test_range_gradient_is_scaled_as_in_lsq(signed):
    layer = built(3, signed)
    layer.set_branch(0, 0.5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X) * X)
    slope = tape.gradient(loss, layer.log2_range.value)
    high = 3 if signed else 7
    v = X.astype("float64") / 0.5
    low = -high - 1 if signed else 0
    ds = np.where(v <= low, low, np.where(v >= high, high, np.floor(v + 0.5) - v))
    scale = 1 / np.sqrt(high * 6 * 6 * 3)  # section 2.2: features of one image
    # d step / d log2_range = step ln 2
    expected = (ds * X).sum() * 0.5 * np.log(2) * scale
    np.testing.assert_allclose(slope, [expected], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "learned"),
    [
        ({}, True),
        ({"learn_range": False}, False),
        ({"power_of_two": True}, False),
        ({"signed": None}, False),
    ],
)
def test_which_ranges_are_learned(options, learned):
    layer = built(8, **options)
    assert bool(layer.trainable_variables) == learned
    assert len(layer.variables) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_infinite_values_do_not_make_other_values_infinite(value):
    layer = built(8)
    x = np.where(np.arange(X.size).reshape(X.shape) == 5, value, X).astype("float32")
    assert np.isfinite(np.delete(layer(x).numpy().ravel(), 5)).all()


def test_observer_sees_the_values_and_passes_them_on():
    layer, seen = built(2), []
    layer.observer = seen.append
    np.testing.assert_array_equal(layer(X), X)
    np.testing.assert_array_equal(seen[0], X)


def test_configuration_round_trip():
    layer = InputQuantizer((2, 4), True, "pact", learn_range=False, name="q")
    again = InputQuantizer.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.bits == (2, 4)


def test_refuses_what_it_cannot_do():
    with pytest.raises(PolicyError, match="Received: bits=9"):
        InputQuantizer((4, 9))
    with pytest.raises(ValueError, match="Did you mean 'pact'"):
        InputQuantizer(4, method="packt")


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("method", sorted(INPUT_QUANTIZERS))
def test_mixed_precision_keeps_float32_ranges(dtype, method):
    layer = built((2, 4), method=method, dtype=dtype)
    with tf.GradientTape() as tape:
        y = layer(X, probabilities=tf.constant([0.5, 0.5]))
        loss = tf.reduce_sum(tf.cast(y, "float32"))
    slope = tape.gradient(loss, layer.log2_range.value)
    assert (y.dtype, slope.dtype) == (layer.compute_dtype, tf.float32)
    assert np.isfinite(slope).all() and np.any(slope)
