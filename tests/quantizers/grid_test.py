import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.policy import PolicyError
from gmpq_tf.quantizers.grid import (
    bounded_power,
    code_limit,
    finite_step,
    power_of_two,
    symmetric_limit,
    unsigned_limit,
)


def test_limits_of_the_integer_types():
    assert (unsigned_limit(8), symmetric_limit(8)) == (255, 127)
    assert (unsigned_limit(2), symmetric_limit(2)) == (3, 1)
    assert (code_limit(4, False), code_limit(4, True)) == (15, 7)


@pytest.mark.parametrize("bits", [1, 9, 0, -2, 2.5, "4", True])
def test_refuses_other_bits(bits):
    with pytest.raises(PolicyError, match="Received: bits="):
        unsigned_limit(bits)


def test_power_of_two_is_exact_and_nearest_in_the_logarithm():
    steps = np.geomspace(1e-6, 1e3, 301).astype("float32")
    nested = power_of_two(tf.constant(steps)).numpy()
    mantissas, _ = np.frexp(nested)
    np.testing.assert_array_equal(mantissas, 0.5)
    assert np.abs(np.log2(nested / steps)).max() <= 0.5 + 1e-6


def test_power_of_two_keeps_powers_of_two():
    powers = np.ldexp(np.float32(1), np.arange(-30, 31)).astype("float32")
    np.testing.assert_array_equal(power_of_two(tf.constant(powers)), powers)


def test_power_of_two_has_the_identity_gradient():
    step = tf.constant([0.3, 0.02])
    with tf.GradientTape() as tape:
        tape.watch(step)
        nested = power_of_two(step)
    np.testing.assert_array_equal(tape.gradient(nested, step), [1.0, 1.0])


@pytest.mark.parametrize(
    ("log2", "bound"),
    [(-300, -50), (-1e30, -50), (-50, -50), (-3.25, -3.25), (49.5, 49.5), (200, 50)],
)
def test_bounded_power_and_its_gradient(log2, bound):
    x = tf.constant(float(log2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = bounded_power(x)
    assert float(y) == pytest.approx(2.0**bound, rel=1e-5)
    slope = np.log(2) * 2.0**bound
    assert float(tape.gradient(y, x)) == pytest.approx(slope, rel=1e-5)


def test_bounded_power_keeps_nan():
    assert np.isnan(bounded_power(tf.constant([np.nan, np.inf]))).all()


def test_float16_steps_and_their_reciprocals_are_finite():
    steps = tf.constant([0.0, 1e-7, 2.0**-10, 3e4, np.inf], tf.float16)
    got = finite_step(steps)
    np.testing.assert_array_equal(got, [2**-14, 2**-14, 2**-10, 256, 256])
    assert np.isfinite(1 / got).all() and np.isfinite(255 * got).all()
    wide = tf.constant([1e-30, 1e30])
    np.testing.assert_array_equal(finite_step(wide), wide)
