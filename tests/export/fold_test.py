import keras
import numpy as np
import pytest

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.fold import affine, fold_layer, normalization
from gmpq_tf.layers import QuantConv2D, QuantDepthwiseConv2D
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer

INPUT_STEP, OUTPUT_STEP = 0.25, 0.5


def conv(kind, bits, **options):
    layer = kind(
        kernel_size=3,
        input_quantizer=InputQuantizer(4),
        kernel_quantizer=KernelQuantizer(bits, shared_axes=kind.shared_axes),
        bias_initializer="random_normal",
        name="c",
        **options,
    )
    layer.build((None, 6, 6, 4))
    layer.kernel_quantizer.fit_steps(layer.kernel)
    return layer


def random_norm(channels):
    layer = keras.layers.BatchNormalization(epsilon=1e-3)
    layer.build((None, 6, 6, channels))
    random = np.random.default_rng(0)
    gamma = random.uniform(0.5, 2, channels) * np.where(np.arange(channels) % 2, -1, 1)
    mean, beta = random.normal(size=(2, channels))
    layer.set_weights([gamma, beta, mean, random.uniform(0.5, 2, channels)])
    return layer


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(QuantConv2D, {"filters": 6}), (QuantDepthwiseConv2D, {"depth_multiplier": 2})],
)
def test_folded_integers_compute_layer_and_normalization(kind, options, bits):
    layer = conv(kind, bits, **options)
    channels = layer.bias.shape[0]
    norm = random_norm(channels)
    folded = fold_layer(layer, norm, INPUT_STEP, OUTPUT_STEP)
    kernel = layer.quantize_kernel(layer.kernel)
    stock_kind = getattr(keras.layers, kind.searchable_kind)
    stock = stock_kind(kernel_size=3, use_bias=True, **options)
    stock.build((None, 6, 6, 4))
    codes = np.random.default_rng(1).integers(0, 16, (2, 6, 6, 4)).astype("float32")
    stock.set_weights([kernel, layer.bias])
    wanted = norm(stock(codes * INPUT_STEP))
    stock.set_weights([folded.codes, folded.bias])
    received = np.asarray(stock(codes)) * folded.scale * INPUT_STEP
    unit = folded.scale.max() * INPUT_STEP
    np.testing.assert_allclose(received, wanted, atol=unit / 2 + 1e-4)


def test_codes_are_the_trained_ones_times_sign():
    layer = conv(QuantConv2D, 3, filters=6)
    folded = fold_layer(layer, random_norm(6), INPUT_STEP, OUTPUT_STEP)
    trained = layer.kernel_quantizer.codes(layer.kernel)
    assert folded.factor == 1
    np.testing.assert_array_equal(folded.signs, [1, -1, 1, -1, 1, -1])
    np.testing.assert_array_equal(folded.codes, trained * folded.signs)


@pytest.mark.parametrize(
    ("bits", "largest", "factor"),
    [(8, 127, 1), (7, 127, 2), (4, 127, 16), (2, 127, 64), (4, 7, 1), (2, 7, 4)],
)
def test_scaled_codes_fill_their_storage(bits, largest, factor):
    layer, norm = conv(QuantConv2D, bits, filters=6), random_norm(6)
    plain = fold_layer(layer, norm, INPUT_STEP, OUTPUT_STEP)
    folded = fold_layer(layer, norm, INPUT_STEP, OUTPUT_STEP, largest)
    assert folded.factor == factor
    np.testing.assert_array_equal(folded.codes, plain.codes * factor)
    np.testing.assert_allclose(folded.scale * factor, plain.scale)
    assert np.abs(folded.codes).max() <= largest


def test_zero_factor_makes_a_constant_channel():
    layer, norm = conv(QuantConv2D, 4, filters=6), random_norm(6)
    gamma, beta, mean, variance = norm.get_weights()
    gamma[2] = 0
    norm.set_weights([gamma, beta, mean, variance])
    folded = fold_layer(layer, norm, INPUT_STEP, OUTPUT_STEP)
    assert folded.signs[2] == 0
    assert not folded.codes[..., 2].any()
    value = folded.bias[2] * folded.scale[2] * INPUT_STEP
    assert value == pytest.approx(beta[2], abs=OUTPUT_STEP / 1000)


def test_weights_that_are_not_finite_are_refused():
    layer, norm = conv(QuantConv2D, 4, filters=6), random_norm(6)
    gamma, beta, mean, variance = norm.get_weights()
    norm.set_weights([gamma * np.nan, beta, mean, variance])
    with pytest.raises(ExportError, match=r"finite.*'c'"):
        fold_layer(layer, norm, INPUT_STEP, OUTPUT_STEP)


def test_normalization_equals_keras():
    norm = random_norm(5)
    x = np.random.default_rng(2).normal(size=(3, 2, 2, 5)).astype("float32")
    factor, offset = normalization(norm, 5)
    np.testing.assert_allclose(x * factor + offset, norm(x), rtol=1e-5, atol=1e-5)


def test_affine_equals_its_equation():
    factor, offset = np.array([2.0, -0.5, 0.0]), np.array([1.0, 0.3, -0.7])
    codes, scale, bias = affine(factor, offset, 0.25)
    x = np.arange(-8, 8)[:, None]
    received = (x * codes + bias) * scale * 0.25
    np.testing.assert_allclose(received, x * 0.25 * factor + offset, atol=0.005)


def test_offsets_are_whole_units_but_for_a_sixtieth():
    """A fixed code would be off by up to half a unit, a quarter of one on average."""
    random = np.random.default_rng(0)
    factor, offset = random.uniform(0.1, 2, 200), random.normal(0, 1, 200)
    _, scale, bias = affine(factor, offset, 0.037)
    error = np.abs(bias - offset / (scale * 0.037))
    assert np.mean(error) < 1 / 60
