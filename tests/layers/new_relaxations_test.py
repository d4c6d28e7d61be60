"""Relaxations with importances of their own, by the equations of their papers."""

from itertools import product

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.layers.fractional import ADJACENT, between
from gmpq_tf.layers.learned_grid import smooth_bits
from gmpq_tf.layers.nested_gates import NESTED, open_probabilities
from gmpq_tf.layers.relaxation import RELAXATIONS
from gmpq_tf.layers.relaxation_row import Grids, logistic
from gmpq_tf.layers.thresholds import THRESHOLDS
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer

SIGNED = Grids((2, 3, 4), (1, 3, 7))
UNSIGNED = Grids((2, 4, 8), (3, 15, 255))


@pytest.mark.parametrize("grids", [SIGNED, UNSIGNED, Grids((2, 5), (1, 15))])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
class TestRows:
    def test_one_branch_alone_has_all_the_probability(self, relaxation, grids):
        row = RELAXATIONS[relaxation]
        for branch in range(len(grids.bits)):
            values = row.alone(row.started(grids), grids, branch)
            assert values.shape == row.shape(len(grids.bits))
            pi = row.distribute(tf.constant(values, tf.float32), grids).numpy()
            np.testing.assert_allclose(pi, np.eye(len(grids.bits))[branch], atol=1.1e-3)

    def test_a_mean_can_be_set(self, relaxation, grids):
        row = RELAXATIONS[relaxation]
        low, high = grids.bits[0], grids.bits[-1]
        for mean in np.linspace(low + 0.1, high - 0.1, 5):
            values = tf.constant(row.at(grids, mean), tf.float32)
            pi = row.distribute(values, grids).numpy()
            assert pi.sum() == pytest.approx(1, abs=1e-5) and pi.min() >= 0
            assert pi @ grids.bits == pytest.approx(mean, abs=2e-3)


@pytest.mark.parametrize("bits", [2, 2.25, 3, 3.9, 5, 6.5, 8])
def test_neighbours_of_a_fraction_are_linear(bits):
    grids = Grids((2, 3, 5, 8), (1, 3, 15, 127))
    found = between(tf.constant(float(bits)), grids).numpy()
    expected = [np.interp(bits, grids.bits, row) for row in np.eye(4)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("relaxation", ["adjacent", "drawn_neighbour"])
@pytest.mark.parametrize("bits", [2, 2.5, 3, 3.75, 5, 6])
def test_mean_bits_rise_with_a_fraction_everywhere(relaxation, bits):
    """On candidates too, the last among them, where a penalty would push it away."""
    grids, row = Grids((2, 3, 4, 6), (1, 3, 7, 31)), RELAXATIONS[relaxation]
    importance = tf.constant([float(bits)])
    with tf.GradientTape() as tape:
        tape.watch(importance)
        mean = tf.reduce_sum(row.distribute(importance, grids) * [2, 3, 4, 6])
    assert float(mean) == pytest.approx(bits)
    assert float(tape.gradient(mean, importance)[0]) == pytest.approx(1)


def test_a_fraction_beyond_the_candidates_comes_back_and_does_not_run_away():
    grids, found = Grids((2, 3, 4), (1, 3, 7)), []
    for bits, wanted in product((1.9, 2.5, 4.1), (2.0, 4.0)):
        importance = tf.constant([bits])
        with tf.GradientTape() as tape:
            tape.watch(importance)
            mean = tf.reduce_sum(ADJACENT.weigh(importance, grids, None) * [2, 3, 4])
            loss = tf.square(mean - wanted) / 2
        found.append(float(tape.gradient(loss, importance)[0]))
        inside = np.clip(bits, 2, 4)
        assert float(mean) == pytest.approx(inside)
    # Of (1.9, 2.5, 4.1), each pulled to 2 and to 4.
    assert found == pytest.approx([0, -2, 0.5, -1.5, 2, 0])


def test_nested_gates_add_residuals():
    """`z2 e4` and `z2 z4 e8` on top of 2 bits, in NumPy, of any open share."""
    x = np.random.default_rng(0).uniform(0, 1.2, (1, 400)).astype("float32")
    quantizer = InputQuantizer(UNSIGNED.bits)
    quantizer.build((None, 400))
    for branch, code in enumerate(UNSIGNED.codes):
        quantizer.set_branch(branch, 1 / code)
    noise, gates = tf.constant([0.3, -0.5]), tf.constant([0.2, 0.4])
    weights = NESTED.weigh(gates, UNSIGNED, noise)
    found = quantizer(tf.constant(x), weights).numpy()
    z = 1 / (1 + np.exp(-(noise + gates).numpy() * 1.5)) * 1.2 - 0.1
    assert ((z > 0) & (z < 1)).all()
    clipped = np.clip(x, 0, 1)
    far = np.abs(clipped[..., None] * UNSIGNED.codes % 1 - 0.5).min(-1) > 1e-3
    two = np.round(clipped * 3) / 3
    four = np.round((clipped - two) * 15) / 15
    eight = np.round((clipped - two - four) * 255) / 255
    expected = two + z[0] * (four + z[1] * eight)
    np.testing.assert_allclose(found[far], expected[far], atol=1e-5)
    # Open to 4 bits it is plain rounding to 4 bits.
    hard = NESTED.weigh(tf.constant([5.0, -5.0]), UNSIGNED, None)
    np.testing.assert_array_equal(hard, [0, 1, 0])


def test_gates_are_open_as_often_as_said():
    noise = logistic(tf.constant([1, 2]), [20_000, 1])
    for logit in (-2.0, 0.0, 1.5):
        stretched = tf.sigmoid((noise + logit) * 1.5) * 1.2 - 0.1
        share = np.mean(stretched.numpy() > 0)
        said = float(open_probabilities(tf.constant(logit)))
        assert share == pytest.approx(said, abs=0.012)


def test_a_learned_grid_has_the_gradients_of_the_paper():
    """By d: `round(x/d) - x/d` inside; by x_max: `sign(x)` outside; else 0."""
    kernel = np.linspace(-1.4, 1.4, 57).astype("float32")[:, None]
    quantizer = KernelQuantizer(SIGNED.bits, shared_axes=(0,), one_rounding=True)
    quantizer.build(kernel.shape)
    step, limit = 0.125, 0.7
    unit = float(quantizer.step(kernel, 2)[0, 0])  # of the widest branch
    importance = tf.Variable(
        np.log2([step / unit, limit / (7 * unit)]), dtype="float32"
    )
    with tf.GradientTape(persistent=True) as tape:
        weights = RELAXATIONS["learned_grid"].weigh(
            tf.convert_to_tensor(importance), SIGNED, None
        )
        values = quantizer(tf.constant(kernel), weights)[:, 0]
    codes = np.clip(np.round(kernel[:, 0] / step), -limit / step, limit / step)
    np.testing.assert_allclose(values, codes * step, atol=1e-5)
    slopes = tape.jacobian(values, importance).numpy() / np.log(2)  # of log2
    scaled = kernel[:, 0] / step
    inside = np.abs(kernel[:, 0]) < limit
    tied = np.abs(np.abs(scaled) % 1 - 0.5) < 1e-3
    of_step = np.where(inside, np.round(scaled) - scaled, 0) * step
    of_limit = np.where(inside, 0, np.sign(kernel[:, 0])) * limit
    np.testing.assert_allclose(slopes[~tied, 0], of_step[~tied], atol=1e-4)
    edge = np.abs(np.abs(kernel[:, 0]) - limit) < 1e-3
    np.testing.assert_allclose(slopes[~edge, 1], of_limit[~edge], atol=1e-4)
    # Bits are those of the paper's formula, and fall by one where d doubles.
    expected = np.log2(limit / step + 1) + 1
    assert float(smooth_bits(importance, SIGNED)) == pytest.approx(expected, abs=1e-5)
    for branch, bits in enumerate(SIGNED.bits):
        widths = [SIGNED.codes[-1] / SIGNED.codes[branch], 1.0]
        assert float(smooth_bits(tf.constant(np.log2(widths), tf.float32), SIGNED)) == (
            pytest.approx(bits, abs=1e-5)
        )


def test_expected_steps_and_thresholds_are_linear_in_what_is_drawn():
    row = RELAXATIONS["thresholds"]
    logits = np.random.default_rng(1).normal(size=(3, THRESHOLDS)).astype("float32")
    pi = np.exp(logits) / np.exp(logits).sum()
    scales = 2.0 ** (1 - np.arange(THRESHOLDS))
    found = row.weigh(tf.constant(logits), SIGNED, None).numpy()
    np.testing.assert_allclose(found, (pi * scales).sum(1), rtol=1e-5)
    quantizer = KernelQuantizer(SIGNED.bits, shared_axes=(0,), one_rounding=True)
    kernel = np.linspace(-2, 2, 4001).astype("float32")[:, None]
    quantizer.build(kernel.shape)
    units = np.array([float(np.ravel(quantizer.step(kernel, b))[0]) for b in range(3)])
    step = (pi * scales * units[:, None]).sum()
    limit = (pi * scales * (units * SIGNED.codes)[:, None]).sum()
    values = quantizer(tf.constant(kernel), tf.constant(found)).numpy()
    assert values.max() == pytest.approx(limit, rel=1e-4)
    steps = np.unique(np.diff(np.unique(np.round(values, 5)))[1:-1])
    np.testing.assert_allclose(steps, step, rtol=1e-2)
