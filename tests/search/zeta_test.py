"""zeta's controller against its equation."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.search.zeta import adapted_zeta, damped_zeta


def test_zeta_follows_the_excess_over_the_budget():
    """Integral and proportional parts, from the logarithm of the ratio."""
    zeta, log2 = tf.constant(50.0), np.log(2.0)
    for update, gain in ((adapted_zeta, 0.2), (damped_zeta, 50.0)):
        over, even, under = (
            float(update(zeta, tf.constant(e), 1e9, 30.0)) for e in (2e9, 1e9, 5e8)
        )
        assert over == pytest.approx(50 + gain * 30 * log2, rel=1e-6)
        assert even == 50
        assert under == pytest.approx(50 - gain * 30 * log2, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_zeta_of_a_budget_out_of_reach_stops_at_1000_times_its_scale(ratio):
    """10,000 steps at a cost that no importance changes, in closed form."""
    zeta, scale = tf.constant(50.0), 50.0
    expected = tf.constant(ratio * 1e9)
    step = tf.function(lambda z: adapted_zeta(z, expected, 1e9, scale))
    for count in range(10_000):
        if count == 1000:
            line = 50 + 1000 * 0.2 * scale * np.log(ratio)
            assert float(zeta) == pytest.approx(line, rel=1e-3)
        zeta = step(zeta)
    bound = 1000 * scale * np.sign(ratio - 1) or 50
    assert float(zeta) == pytest.approx(bound, rel=1e-6)
    # It finds back as fast as it went: no steps were saved up beyond the bound.
    back = float(adapted_zeta(zeta, tf.constant(1e9 / ratio), 1e9, scale))
    assert back == pytest.approx(bound - 0.2 * scale * np.log(ratio), rel=1e-6)


@pytest.mark.parametrize(("expected", "log"), [(0.0, -7), (1e-38, -7), (1e38, 7)])
def test_zeta_is_finite_at_any_expected_cost(expected, log):
    for update, gain in ((adapted_zeta, 0.2), (damped_zeta, 50.0)):
        got = float(update(tf.constant(50.0), tf.constant(expected), 1e9, 30.0))
        assert got == pytest.approx(50 + gain * 30 * log, rel=1e-6)


def test_zeta_of_an_unknown_cost_is_nan():
    for update in (adapted_zeta, damped_zeta):
        assert np.isnan(update(tf.constant(50.0), tf.constant(np.nan), 1e9, 30.0))
