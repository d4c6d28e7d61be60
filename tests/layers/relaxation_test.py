"""Every relaxation on the errors of 2, 3 and 4 bits: which split of them is best."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.layers import MIXED_LAYERS
from gmpq_tf.layers.relaxation import RELAXATIONS, relaxation_of
from gmpq_tf.layers.relaxation_row import gumbel
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer

# Of 20,001 quantiles of the standard normal: what a row of a table says of them.
BITS, STEPS = (2, 3, 4), np.array([1.22, 0.65, 0.353])
KINDS = ("Conv2D", "Dense")


def normal():
    from scipy.stats import norm

    count = 20_001
    return norm.ppf((np.arange(count) + 0.5) / count).astype("float32")


def layer_of(relaxation, values, bits=BITS, method="lsq", kind="Dense"):
    """A layer whose kernel [values, 1] or input [1, values] is quantized."""
    cls = MIXED_LAYERS[kind]
    once = relaxation_of(relaxation).one_rounding
    options = {"units": 1} if kind == "Dense" else {"filters": 1, "kernel_size": 1}
    layer = cls(
        **options,
        input_quantizer=InputQuantizer(bits, False, one_rounding=once),
        kernel_quantizer=KernelQuantizer(bits, method, cls.shared_axes, once),
        relaxation=relaxation,
    )
    shape = (1, len(values)) if kind == "Dense" else (1, 1, 1, len(values))
    layer.build(shape)
    layer.kernel.assign(values.reshape(layer.kernel.shape))
    if method == "lsq":
        steps = layer.kernel_quantizer.log2_step
        steps.assign(np.log2(STEPS).reshape([-1] + [1] * (len(steps.shape) - 1)))
    return layer


def set_probabilities(layer, pi):
    for branches in (layer.kernel_branches, layer.input_branches):
        branches.importance.assign(np.log(np.maximum(pi, 1e-30)))


def leave(layer, branch):
    """One branch of both sides, with the range that its own quantizer has."""
    for branches, quantizer in (
        (layer.kernel_branches, layer.kernel_quantizer),
        (layer.input_branches, layer.input_quantizer),
    ):
        values = np.array(branches.importance)
        if layer.relaxation == "learned_grid":
            kernel = () if quantizer is layer.input_quantizer else (layer.kernel,)
            widths = [
                float(np.ravel(quantizer.step(*kernel, i))[0]) * branches.grids.codes[i]
                for i in (branch, -1)
            ]
            values[1] = np.log2(widths[0] / widths[1])
        branches.importance.assign(values)
        branches.choose(branch)
        np.testing.assert_allclose(
            branches.probabilities(), np.eye(len(BITS))[branch], atol=2e-3
        )


def kernel_error(layer, pi, training=False):
    set_probabilities(layer, pi)
    weights = layer.branch_weights(training).weights
    found = layer.quantize_kernel(layer.kernel, weights)
    return float(tf.reduce_mean(tf.square(found - layer.kernel)))


def input_error(pi):
    """Of the mixture of activations that are half of the normal distribution."""
    quantizer = InputQuantizer(BITS)
    quantizer.build((None, 1))
    for branch, step in enumerate((0.65, 0.353, 0.193)):
        quantizer.set_branch(branch, step)
    x = np.abs(normal()[::2])
    found = quantizer(tf.constant(x), tf.constant(np.array(pi, "float32")))
    return float(tf.reduce_mean(tf.square(found - x)))


def at(mean, low):
    """Probabilities over 2, 3 and 4 bits with a mean, and so much of 2 bits."""
    high = mean - 3 + low
    return np.array([low, 1 - low - high, high])


class TestPortfolio:
    def test_a_mixture_is_best_inside_the_simplex(self):
        layer = layer_of("mixture", normal())
        tabled = {
            2.50: (0.50, 0.50, 0.0),
            2.75: (0.296, 0.659, 0.045),
            3.00: (0.228, 0.544, 0.228),
            3.25: (0.16, 0.43, 0.41),
            3.50: (0.09, 0.32, 0.59),
            3.75: (0.024, 0.20, 0.774),
        }
        for mean, best in tabled.items():
            lows = np.arange(max(0, 3 - mean), (4 - mean) / 2 + 1e-9, 0.004)
            errors = [kernel_error(layer, at(mean, low)) for low in lows]
            found = at(mean, lows[int(np.argmin(errors))])
            np.testing.assert_allclose(found, best, atol=0.016)
        found = [input_error(at(3, low)) for low in (0.2, 0.244, 0.29)]
        assert min(found) == found[1] < input_error((0, 1, 0))
        assert kernel_error(layer, at(3, 0.228)) == pytest.approx(0.0290, abs=2e-4)
        assert kernel_error(layer, at(3.75, 0.024)) < kernel_error(layer, (0, 0, 1))

    def test_one_rounding_is_best_at_the_vertex(self):
        layer = layer_of("expected_grid", normal())
        tabled = (0.0469, 0.0495, 0.0532, 0.0574, 0.0620, 0.0667)
        for low, error in zip(np.arange(6) / 10, tabled, strict=True):
            assert kernel_error(layer, at(3, low)) == pytest.approx(error, abs=1e-4)

    @pytest.mark.slow
    def test_the_mean_of_draws_is_linear(self):
        layer = layer_of("sampled", normal())
        alone = [kernel_error(layer, vertex) for vertex in np.eye(3)]
        np.testing.assert_allclose(alone, (0.19017, 0.04686, 0.01289), rtol=5e-3)
        for pi in (at(3, 0.25), at(2.75, 0.3)):
            drawn = [kernel_error(layer, pi, training=True) for _ in range(400)]
            assert set(np.round(drawn, 5)) <= set(np.round(alone, 5))
            deviation = np.std(alone) / np.sqrt(len(drawn))
            assert np.mean(drawn) == pytest.approx(pi @ alone, abs=4 * deviation)

    @pytest.mark.slow
    def test_neighbours_are_drawn_by_their_distance(self):
        layer = layer_of("drawn_neighbour", normal()[::20])
        branches = layer.kernel_branches
        for bits, pi in ((2.75, (0.25, 0.75, 0)), (3.5, (0, 0.5, 0.5))):
            branches.set_mean(bits)
            np.testing.assert_allclose(branches.probabilities(), pi, atol=1e-6)
            drawn = np.array([branches.weights_now(True) for _ in range(400)])
            assert set(np.unique(drawn)) == {0, 1}
            np.testing.assert_allclose(drawn.mean(0), pi, atol=0.1)
            with tf.GradientTape() as tape:
                mean = tf.reduce_sum(branches.weights_now(True) * BITS)
            assert tape.gradient(mean, branches.importance.value)[0] > 0
        nearer = branches.weights_now(False)
        assert np.sum(nearer) == 1 == nearer[1]

    @pytest.mark.quick_rows(1)
    @pytest.mark.parametrize(
        ("relaxation", "inside"),
        [("mixture", True), ("sampled", False), ("expected_grid", False)],
    )
    def test_importances_go_where_the_error_is_least(self, relaxation, inside):
        """At the mean of 3 bits, from the best split of a mixture on."""
        layer = layer_of(relaxation, normal()[::40])
        toward = np.array([1, -2, 1]) / 6  # away from 3 bits, the mean kept
        slopes = []
        for _ in range(1 if relaxation != "sampled" else 600):
            set_probabilities(layer, at(3, 0.228))
            with tf.GradientTape() as tape:
                weights = layer.branch_weights(training=True).weights
                found = layer.quantize_kernel(layer.kernel, weights)
                error = tf.reduce_mean(tf.square(found - layer.kernel))
            slope = tape.gradient(error, layer.kernel_importance.value).numpy()
            slopes.append(slope / at(3, 0.228) @ toward)
        if inside:
            assert abs(np.mean(slopes)) < 2e-3
        else:
            assert np.mean(slopes) > 4e-3


@pytest.mark.quick_rows(9)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lsq", "max_abs"])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_with_one_branch_left_all_compute_its_quantizer(relaxation, method, kind):
    values = np.random.default_rng(0).normal(0, 1, 40).astype("float32")
    layer = layer_of(relaxation, values, method=method, kind=kind)
    for branch, bits in enumerate(BITS):
        layer.input_quantizer.set_branch(branch, 1.5 / (2**bits - 1))
    x = np.abs(values).reshape((1, 40) if kind == "Dense" else (1, 1, 1, 40))
    for branch, bits in enumerate(BITS):
        leave(layer, branch)
        codes = layer.kernel_quantizer.codes(layer.kernel, branch)
        kernel = codes * layer.kernel_quantizer.step(layer.kernel, branch)
        step = 1.5 / (2**bits - 1)
        inputs = np.clip(np.floor(x / step + 0.5), 0, 2**bits - 1) * step
        for training in (False, True):
            pair = layer.branch_weights(training)
            np.testing.assert_allclose(
                layer.quantize_kernel(layer.kernel, pair.weights), kernel, atol=1e-5
            )
            np.testing.assert_allclose(
                layer.quantize_input(x, pair.activations), inputs, atol=1e-5
            )
            layer.input_quantizer.calibrate_first = False
            np.testing.assert_allclose(
                layer(x, training=training).numpy().ravel(),
                inputs.ravel() @ kernel.ravel(),
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_slopes_of_the_mean_grid_are_those_of_its_equation(method):
    """Outside the range that of the bound, inside that of LSQ, by NumPy."""
    quantizer = InputQuantizer((2, 4), False, method, one_rounding=True)
    quantizer.build((None, 6))
    ranges, pi = np.array([1.5, 3.0], "float32"), np.array([0.4, 0.6], "float32")
    x = np.array([[-0.2, 0.1, 0.55, 1.3, 2.2, 5.0]], "float32")
    limits = np.array([3, 15])
    steps = ranges / limits
    step, bound = pi @ steps, pi @ ranges
    inside = (x > 0) & (x < bound)
    tensors = [tf.constant(v) for v in (ranges, np.zeros(2, "float32"), pi)]
    with tf.GradientTape() as tape:
        tape.watch([*tensors, given := tf.constant(x)])
        found = quantizer.compute(given, tensors)
    codes = np.clip(np.floor(x / step + 0.5), 0, bound / step)
    np.testing.assert_allclose(found, codes * step, atol=1e-6)
    of_x, of_ranges, of_pi = tape.gradient(found, [given, tensors[0], tensors[2]])
    np.testing.assert_array_equal(of_x, inside.astype("float32"))
    miss = np.sum((codes - x / step)[inside])
    beyond = np.sum(x >= bound)
    learned = miss if method == "lsq" else 0.0
    np.testing.assert_allclose(
        of_ranges, pi * (learned / limits + beyond), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(of_pi, miss * steps + beyond * ranges, rtol=1e-4)


def test_draws_go_on_where_a_saved_layer_stopped(tmp_path):
    values = np.random.default_rng(0).normal(size=12).astype("float32")

    def drawn(layer, count):
        return [np.argmax(layer.branch_weights(True).weights) for _ in range(count)]

    keras.utils.set_random_seed(3)
    layer = layer_of("sampled", values)
    drawn(layer, 5)
    inputs = keras.Input((12,))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    expected = drawn(layer, 30)
    assert len(set(expected)) == 3
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = next(each for each in loaded.layers if hasattr(each, "relaxation"))
    assert again.relaxation == "sampled"
    assert drawn(again, 30) == expected
    # The kernel's branches and the input's are drawn apart.
    pairs = [layer.branch_weights(True) for _ in range(30)]
    assert any(np.argmax(p.weights) != np.argmax(p.activations) for p in pairs)


def test_noise_has_the_gumbel_distribution():
    noise = np.ravel([gumbel(tf.constant([7, i]), [1000]) for i in range(20)])
    assert noise.mean() == pytest.approx(0.5772, abs=0.03)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.04)


def test_what_cannot_be_relaxed_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'sampled'"):
        layer_of("sampld", np.ones(3, "float32"))
    with pytest.raises(ValueError, match="'apot'"):
        KernelQuantizer((2, 4), "apot", one_rounding=True)
