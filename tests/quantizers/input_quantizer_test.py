import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers import INPUT_QUANTIZERS, InputQuantizer
from gmpq_tf.quantizers.observing import observing

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
    with observing({layer: seen.append}):
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


EXTREMES = [-1e30, -300.0, -140.0, -126.0, -60.0, 60.0, 128.0, 200.0, 1e30]


def extreme(dtype, method, signed, log2):
    """A quantizer of 2 and 8 bits whose ranges went far astray; values; gradients."""
    layer = InputQuantizer((2, 8), signed, method, dtype=dtype)
    layer.build((None, 5))
    layer.log2_range.assign([log2, log2])
    x = tf.cast([[0.0, 0.5, 1.0, -1.0, 3e4]], dtype)
    p = tf.constant([0.5, 0.5])
    with tf.GradientTape() as tape:
        tape.watch([x, p])
        y = layer(x, probabilities=p)
        total = tf.reduce_sum(tf.cast(y, "float32"))
    sources = [x, p, layer.log2_range.value]
    slopes = tape.gradient(total, sources, unconnected_gradients="zero")
    return layer, y, [tf.cast(s, "float32").numpy() for s in slopes]


@pytest.mark.quick_rows(12)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("signed", [False, True, None])
@pytest.mark.parametrize("method", sorted(INPUT_QUANTIZERS))
def test_ranges_astray_leave_values_and_gradients_finite(method, signed, dtype):
    for log2 in EXTREMES:
        layer, y, slopes = extreme(dtype, method, signed, log2)
        assert np.isfinite(tf.cast(y, "float32")).all(), log2
        assert all(np.isfinite(s).all() for s in slopes), log2
        assert 0 < layer.step(0) < np.inf and np.isfinite(1 / layer.step(1))


@pytest.mark.parametrize("log2", EXTREMES)
def test_ranges_astray_are_2_to_the_50_or_its_inverse(log2):
    layer, y, (of_x, of_p, _) = extreme("float32", "lsq", False, log2)
    bound = 2.0 ** np.clip(log2, -50, 50)
    x = np.array([0.0, 0.5, 1.0, -1.0, 3e4])
    terms = [
        np.floor(np.clip(x * (n / bound), 0, n) + 0.5) * bound / n for n in (3, 255)
    ]
    np.testing.assert_allclose(y[0], np.mean(terms, axis=0), rtol=1e-4)
    np.testing.assert_allclose(of_p, np.sum(terms, axis=1), rtol=1e-4)
    np.testing.assert_array_equal(of_x[0], (x >= 0) & (x <= bound))
    assert layer.step(0) == pytest.approx(bound / 3, rel=1e-4)


@pytest.mark.parametrize("method", sorted(INPUT_QUANTIZERS))
def test_infinite_values_saturate_and_nan_stays(method):
    layer = InputQuantizer(4, False, method)
    layer.build((None, 3))
    layer.set_branch(0, 0.5)
    x = tf.constant([[np.inf, 3e38, -np.inf]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    np.testing.assert_allclose(y[0], [7.5, 7.5, 0.0], rtol=1e-6)
    of_x, of_range = tape.gradient(y, [x, layer.log2_range.value])
    np.testing.assert_array_equal(of_x, np.zeros((1, 3)))
    # Two values at the upper end: each grows with the range, times LSQ's scale.
    expected = 2 * 7.5 * np.log(2) / np.sqrt(3 * 15)
    np.testing.assert_allclose(of_range, [expected], rtol=1e-5)
    np.testing.assert_array_equal(
        np.isnan(layer(tf.constant([[np.nan, 1.0, 2.0]]))), [[1, 0, 0]]
    )


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf])
def test_impossible_steps_are_refused(step):
    with pytest.raises(ValueError, match="positive and finite"):
        built(4).set_branch(0, step)
