import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.quantizers.lsq import lsq, lsq_kernel, scale_gradient

X = np.random.default_rng(0).normal(0, 1.2, 300)


def step_slope(function, x, step):
    """`dq/ds` of each element."""
    step = tf.constant(step, "float64")
    with tf.GradientTape() as tape:
        tape.watch(step)
        y = function(tf.constant(x), step)
    return tape.jacobian(y, step).numpy()


def equation_3(x, step, low, high):
    v = x / step
    inside = np.round(v) - v
    return np.where(v <= low, low, np.where(v >= high, high, inside))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_step_gradient_of_equation_3(bits, signed):
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step = 1.3 / high
    slope = step_slope(lambda x, s: lsq(x, s * high, bits, signed), X, step)
    low = -high - 1 if signed else 0
    np.testing.assert_allclose(slope, equation_3(X, step, low, high), atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_kernel_step_gradient_of_equation_3(bits):
    high = 2 ** (bits - 1) - 1
    step = 1.3 / high
    slope = step_slope(lambda w, s: lsq_kernel(w, s, bits), X, step)
    np.testing.assert_allclose(slope, equation_3(X, step, -high, high), atol=1e-9)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_scaling_values_and_range_together_is_smooth(bits):
    """`q(c x, c a) = c q(x, a)`: the finite difference in c is `x dq/dx + a dq/da`."""

    def value(c):
        return lsq(tf.constant(c * X), tf.constant(c * 1.3, "float64"), bits, True)

    x, a = tf.constant(X), tf.constant(1.3, "float64")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, a])
        y = lsq(x, a, bits, True)
        total = tf.reduce_sum(y)
    along = tf.reduce_sum(x * tape.gradient(total, x)) + a * tape.gradient(total, a)
    difference = tf.reduce_sum(value(1 + 1e-7) - value(1 - 1e-7)) / 2e-7
    assert float(along) == pytest.approx(float(difference), rel=1e-5)


def test_scale_gradient_changes_only_the_gradient():
    value = tf.constant([1.0, -2.0])
    with tf.GradientTape() as tape:
        tape.watch(value)
        y = scale_gradient(value, 0.25)
    np.testing.assert_allclose(y, value)
    np.testing.assert_allclose(tape.gradient(y, value), [0.25, 0.25])


def test_scale_gradient_keeps_every_bit_of_the_value():
    value = np.random.default_rng(1).normal(-4, 2, 1000).astype("float32")
    np.testing.assert_array_equal(scale_gradient(tf.constant(value), 0.0123), value)
