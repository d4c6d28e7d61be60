"""One suite for every entry of INPUT_QUANTIZERS and KERNEL_QUANTIZERS."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.quantizers import (
    INPUT_QUANTIZERS,
    KERNEL_QUANTIZERS,
    InputQuantizer,
    KernelQuantizer,
)

BITS = range(2, 9)
RANGE = 1.7
PER_TENSOR, PER_CHANNEL = (0, 1, 2, 3), (0, 1, 2)
# Least mean squared error of uniform quantizers of N(0, 1) with 2^(b-1) - 1 levels on
# either side of 0, after the range (code limit times step) that reaches it. The first
# two are those of Max, "Quantizing for minimum distortion", 1960, table II; the others
# were integrated numerically. An unsigned grid of |x| does as such a one a bit wider.
LEAST_ERRORS = {
    2: (1.22401, 0.190174),
    3: (1.95231, 0.0468600),
    4: (2.47387, 0.0128894),
    5: (2.89875, 0.00369322),
    6: (3.27019, 0.00106929),
    7: (3.60738, 0.000308622),
    8: (3.92049, 0.0000883080),
    9: (4.21515, 0.0000250081),
}
# Likewise with one level more below 0, integrated numerically.
LEAST_SIGNED_ERRORS = {
    2: (1.0484, 0.149431),
    3: (1.8055, 0.0406382),
    4: (2.3702, 0.0118640),
    5: (2.8319, 0.00352596),
    6: (3.2296, 0.00104285),
    7: (3.5839, 0.000304579),
    8: (3.9073, 0.0000877069),
}
# N(0, 1) as evenly spaced quantiles: no luck of the draw in the tails.
NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 1e5) for i in range(100_000)], "f")


def limits(bits, signed):
    """Smallest and largest code, from the definition of the integer grids."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def normal(shape=(4000,), seed=0):
    return np.random.default_rng(seed).normal(0, 1.5, shape).astype("float32")


def away_from_edges(x, step):
    """The values that no rounding error moves to another code."""
    return x[np.abs(x / step + 0.5 - np.round(x / step + 0.5)) > 1e-3]


@pytest.fixture(params=sorted(INPUT_QUANTIZERS))
def quantize(request):
    return INPUT_QUANTIZERS[request.param]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
class TestInputFunctions:
    def grid(self, bits, signed):
        low, high = limits(bits, signed)
        return RANGE / high, low, high

    def test_values_are_codes_times_step(self, quantize, bits, signed):
        step, low, high = self.grid(bits, signed)
        x = away_from_edges(normal(), step)
        expected = np.floor(np.clip(x / step, low, high) + 0.5) * step
        quantized = quantize(tf.constant(x), tf.constant(RANGE), bits, signed).numpy()
        np.testing.assert_allclose(quantized, expected, atol=1e-6)
        assert len(np.unique(np.round(quantized / step))) <= 2**bits

    def test_idempotent(self, quantize, bits, signed):
        once = quantize(tf.constant(normal()), tf.constant(RANGE), bits, signed)
        twice = quantize(once, tf.constant(RANGE), bits, signed)
        np.testing.assert_allclose(twice, once, rtol=1e-6, atol=1e-7)

    def test_monotone(self, quantize, bits, signed):
        x = tf.constant(np.linspace(-2.5, 2.5, 5001, dtype="float32"))
        quantized = quantize(x, tf.constant(RANGE), bits, signed).numpy()
        assert np.diff(quantized).min() >= -1e-6

    def test_signs(self, quantize, bits, signed):
        x = away_from_edges(normal(), self.grid(bits, signed)[0])
        plus = quantize(tf.constant(x), tf.constant(RANGE), bits, signed).numpy()
        minus = quantize(tf.constant(-x), tf.constant(RANGE), bits, signed).numpy()
        if signed:
            both = np.abs(x) < RANGE  # below it the grid has one code more
            np.testing.assert_array_equal(minus[both], -plus[both])
        else:
            np.testing.assert_array_equal(np.minimum(plus, minus), 0.0)

    def test_gradient_of_x_is_one_inside_the_range(self, quantize, bits, signed):
        x = tf.constant(normal())
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = quantize(x, tf.constant(RANGE), bits, signed)
        step, low, high = self.grid(bits, signed)
        inside = (x.numpy() >= low * step) & (x.numpy() <= high * step)
        np.testing.assert_array_equal(tape.gradient(y, x), inside.astype("float32"))

    @pytest.mark.quick_rows(22)
    def test_finite_difference_of_the_range_outside_it(self, quantize, bits, signed):
        def value(input_range):
            return quantize(x, tf.constant(input_range, x.dtype), bits, signed)

        x = tf.constant([2 * RANGE, -3 * RANGE], "float64")
        a = tf.constant(RANGE, "float64")
        with tf.GradientTape() as tape:
            tape.watch(a)
            y = quantize(x, a, bits, signed)
        slope = tape.jacobian(y, a)
        difference = (value(RANGE + 1e-4) - value(RANGE - 1e-4)) / 2e-4
        np.testing.assert_allclose(slope, difference, atol=1e-6)

    def test_least_error_of_a_normal_sample(self, quantize, bits, signed):
        x = NORMAL if signed else np.abs(NORMAL)
        table, levels = (
            (LEAST_SIGNED_ERRORS, bits) if signed else (LEAST_ERRORS, bits + 1)
        )
        best, least = table[levels]
        quantized = quantize(tf.constant(x), tf.constant(best), bits, signed).numpy()
        assert np.mean(np.square(quantized - x)) == pytest.approx(least, rel=0.06)

    def test_error_inside_a_wide_range_is_uniform_noise(self, quantize, bits, signed):
        x = np.random.default_rng(2).uniform(0, 1, 50_000).astype("float32")
        step = 1.0 / limits(bits, signed)[1]
        quantized = quantize(tf.constant(x), tf.constant(1.0), bits, signed).numpy()
        noise = np.mean(np.square(quantized - x))
        assert noise == pytest.approx(step**2 / 12, rel=0.03)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_narrow_floats_stay_on_the_grid(self, quantize, bits, signed, dtype):
        step, low, high = self.grid(bits, signed)
        x = tf.cast(normal(), dtype)
        quantized = quantize(x, tf.constant(RANGE, dtype), bits, signed)
        assert quantized.dtype == x.dtype
        values = np.unique(tf.cast(quantized, "float64"))
        allowed = np.arange(low, high + 1) * step
        tolerance = RANGE * {"float16": 2.0**-9, "bfloat16": 2.0**-6}[dtype]
        assert np.abs(values[:, None] - allowed).min(1).max() <= tolerance
        assert len(values) <= 2**bits

    def test_second_derivatives_are_finite(self, quantize, bits, signed):
        x, a = tf.constant(normal((50,))), tf.constant(RANGE)
        with tf.GradientTape() as outer:
            outer.watch([x, a])
            with tf.GradientTape() as inner:
                inner.watch([x, a])
                y = tf.reduce_sum(tf.square(quantize(x, a, bits, signed)))
            slopes = inner.gradient(y, [x, a])
            total = tf.reduce_sum(tf.square(slopes[0])) + slopes[1] ** 2
        for second in outer.gradient(total, [x, a]):
            assert np.isfinite(second).all()
            assert np.any(second)


def input_layer(method, bits, signed, **kwargs):
    layer = InputQuantizer(bits, signed, method, **kwargs)
    layer.build((None, 4))
    return layer


@pytest.mark.parametrize("signed", [False, True, None])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", sorted(INPUT_QUANTIZERS))
class TestInputLayers:
    def test_codes_times_step_exactly(self, method, bits, signed):
        layer = input_layer(method, bits, signed)
        layer.set_branch(0, 0.1, zero_code=1 if signed is None else 0)
        low, high = (-1, 2**bits - 2) if signed is None else limits(bits, signed)
        assert layer.codes() == (low, high)
        allowed = np.arange(low, high + 1, dtype="float32") * np.float32(layer.step())
        quantized = layer(tf.constant(20 * normal((500, 4)))).numpy()
        assert np.isin(quantized, allowed).all()
        assert {allowed[0], allowed[-1]} <= set(quantized.ravel())
        np.testing.assert_array_equal(layer(quantized), quantized)

    def test_power_of_two_steps_nest(self, method, bits, signed):
        layer = input_layer(method, bits, signed, power_of_two=True)
        layer.set_branch(0, 0.125)
        assert layer.step() == 0.125
        assert not layer.log2_range.trainable
        fine = np.round(normal((50, 4)) * 64) / np.float32(64)
        codes = np.floor(fine * 8 + 0.5).clip(*layer.codes())  # halves go up
        np.testing.assert_array_equal(layer(fine), codes / 8)


def whole_numbers(bits):
    return np.arange(2 ** (bits - 1))


def sums_of_powers(bits):
    """Levels as listed in the paper's code, by hand."""
    sets = {
        2: [[0, 1]],
        3: [[0, 1, 2, 4]],
        4: [[0, 1, 4, 8], [0, 2]],
        5: [[0, 2, 8, 32], [0, 1, 4, 16]],
        6: [[0, 2, 16, 64], [0, 1, 8, 32], [0, 4]],
    }
    return np.array(sorted(map(sum, itertools.product(*sets[bits]))))


# Kernel quantizer -> the magnitudes of its codes, and its most bits.
LEVELS = {
    "alq": (None, 7),  # those of each channel follow its weights
    "apot": (sums_of_powers, 6),
    "lsq": (whole_numbers, 8),
    "max_abs": (whole_numbers, 8),
    "rq": (whole_numbers, 8),  # outside of training
}


def gap_of(layer):
    """The widest step from one code to the next."""
    known = LEVELS[layer.method][0]
    return np.diff(known(layer.bits[0])).max() if known else layer.largest_code() // 2


@pytest.fixture(params=sorted(KERNEL_QUANTIZERS))
def kernel_method(request, bits):
    if bits > LEVELS[request.param][1]:
        with pytest.raises(ValueError, match=f"Received: bits={bits}"):
            KernelQuantizer(bits, request.param)
        pytest.skip("refused, as it should be")
    return request.param


def nearest(scaled, levels):
    """The nearest level by trying all; of two the smaller, as `argmin` has it.

    Of whole numbers the even one, as TFLite's kernels have it.
    """
    if len(levels) == levels[-1] + 1:
        return np.round(np.clip(scaled, -levels[-1], levels[-1]))
    tried = np.abs(np.abs(scaled)[..., None] - levels)
    return np.sign(scaled) * levels[np.argmin(tried, -1)]


@pytest.mark.parametrize("axes", [PER_TENSOR, PER_CHANNEL])
@pytest.mark.parametrize("bits", BITS)
class TestKernels:
    def layer(self, method, bits, axes, kernel):
        layer = KernelQuantizer(bits, method, axes)
        layer.build(kernel.shape)
        layer.fit_steps(kernel)
        return layer

    def test_codes_times_step_exactly(self, kernel_method, bits, axes):
        kernel = normal((3, 3, 4, 5))
        layer = self.layer(kernel_method, bits, axes, kernel)
        steps, codes = layer.step(kernel), layer.codes(kernel)
        assert steps.size == (1 if axes == PER_TENSOR else 5)
        known, scaled = LEVELS[kernel_method][0], kernel / steps
        if known is None:  # the nearest of the codes that its channel has
            columns = zip(*(v.reshape(-1, 5).T for v in (scaled, codes)), strict=True)
            if axes == PER_TENSOR:
                columns = [(scaled.ravel(), codes.ravel())]
            for own, found in columns:
                apart = np.abs(own[:, None] - np.unique(found))
                np.testing.assert_allclose(
                    np.abs(own - found), apart.min(1), rtol=1e-4, atol=1e-4
                )
                assert len(np.unique(found)) <= 2**bits
            assert np.abs(codes).max() <= layer.largest_code()
        else:
            np.testing.assert_array_equal(codes, nearest(scaled, known(bits)))
        np.testing.assert_array_equal(layer(kernel), codes.astype("float32") * steps)
        assert known is None or len(np.unique(codes)) <= 2**bits

    def test_idempotent(self, kernel_method, bits, axes):
        if kernel_method == "alq":
            pytest.skip("its bases follow the kernel, and are fitted anew")
        kernel = normal((3, 3, 4, 5))
        layer = self.layer(kernel_method, bits, axes, kernel)
        once = layer(kernel).numpy()
        np.testing.assert_allclose(layer(once), once, rtol=1e-6)

    def test_monotone(self, kernel_method, bits, axes):
        kernel = np.sort(normal((3, 3, 4, 5)).reshape(-1, 5), 0).reshape(3, 3, 4, 5)
        layer = self.layer(kernel_method, bits, axes, kernel)
        quantized = layer(kernel).numpy().reshape(-1, 5)
        assert np.diff(quantized, axis=0).min() >= 0

    @pytest.mark.quick_rows(34)
    def test_odd(self, kernel_method, bits, axes):
        kernel = normal((3, 3, 4, 5))
        layer = self.layer(kernel_method, bits, axes, kernel)
        np.testing.assert_array_equal(layer(-kernel), -layer(kernel).numpy())

    @pytest.mark.quick_rows(27)
    def test_gradient_of_the_kernel(self, kernel_method, bits, axes):
        kernel = normal((3, 3, 4, 5))
        layer = self.layer(kernel_method, bits, axes, kernel)
        x = tf.constant(kernel)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        if kernel_method == "alq":
            np.testing.assert_array_equal(tape.gradient(y, x), np.ones(kernel.shape))
            return
        limit = LEVELS[kernel_method][0](bits)[-1]
        reach = np.abs(kernel / layer.step(kernel)) / limit
        slope = tape.gradient(y, x).numpy()
        edge = np.abs(reach - 1) < 1e-5
        if kernel_method == "max_abs":
            assert edge.any() and (slope == 1).all()
        np.testing.assert_array_equal(slope[~edge], (reach < 1)[~edge])

    @pytest.mark.quick_rows(40)
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_narrow_floats_stay_on_the_grid(self, kernel_method, bits, axes, dtype):
        kernel = normal((3, 3, 4, 5))
        layer = KernelQuantizer(bits, kernel_method, axes, dtype=dtype)
        layer.build(kernel.shape)
        layer.fit_steps(kernel)
        quantized = layer(tf.cast(kernel, dtype))
        assert quantized.dtype == dtype
        values = tf.cast(quantized, "float32").numpy().reshape(-1, 5)
        columns = [values] if axes == PER_TENSOR else list(values.T)
        assert max(len(np.unique(column)) for column in columns) <= 2**bits
        exact = layer.codes(kernel) * layer.step(kernel)
        # A narrow float may round a weight near a tie to the neighboring code.
        error = np.abs(values.reshape(kernel.shape) - exact) / layer.step(kernel)
        gap = gap_of(layer)
        assert error.max() <= {"float16": 1.1, "bfloat16": 1.6}[dtype] * gap
        assert np.median(error) <= 0.3 * (gap if kernel_method == "alq" else 1)

    @pytest.mark.quick_rows(20)
    def test_second_derivatives_are_finite(self, kernel_method, bits, axes):
        kernel = normal((3, 3, 4, 5))
        layer = self.layer(kernel_method, bits, axes, kernel)
        x = tf.constant(kernel)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(tf.square(layer(x)))
            slope = inner.gradient(y, x)
        second = outer.gradient(slope, x)
        assert np.isfinite(second).all() and np.any(second)


@pytest.mark.parametrize("bits", BITS)
def test_fitted_kernel_steps_have_the_least_error(bits):
    kernel = NORMAL.reshape(-1, 1)
    layer = KernelQuantizer(bits, "lsq", (0, 1))
    layer.build(kernel.shape)
    layer.fit_steps(kernel)
    error = np.mean(np.square(layer(kernel) - kernel))
    assert error == pytest.approx(LEAST_ERRORS[bits][1], rel=0.03)
