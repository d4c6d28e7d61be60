"""Snapped biases are integers in the accumulator, and move by half a unit at most."""

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.transform.snap import bias_unit

layers = keras.layers


def student(bits: int, bias: bool, norm: bool) -> keras.Model:
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, use_bias=bias, name="first")(x)
    x = layers.BatchNormalization(name="norm1")(x) if norm else x
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, use_bias=bias, depth_multiplier=2, name="deep")(x)
    x = layers.BatchNormalization(name="norm2")(x) if norm else x
    x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    rng = np.random.default_rng(bits)
    for weight in model.weights:
        if "kernel" not in weight.path:
            weight.assign(rng.uniform(0.2, 0.9, weight.shape))
    if norm:
        gamma = np.array(model.get_layer("norm1").gamma)
        gamma[1], gamma[2] = -0.7, 0.0  # a negative and a dead channel
        model.get_layer("norm1").gamma.assign(gamma)
    policy = gmpq.BitwidthPolicy.uniform(model, bits, bits, pinned={})
    quantized = gmpq.quantize_model(model, policy)
    gmpq.calibrate(quantized, [images()])
    return quantized


def images() -> np.ndarray:
    return np.random.default_rng(9).random((16, 8, 8, 3)).astype("float32")


def folded_bias(model: keras.Model, name: str, norm: str | None) -> np.ndarray:
    """b - mean + beta sigma / gamma, in float64, from the public attributes."""
    layer = model.get_layer(name)
    bias = np.asarray(layer.bias, "float64") if layer.use_bias else 0.0
    if norm is None:
        return bias
    bn = model.get_layer(norm)
    sigma = np.sqrt(np.asarray(bn.moving_variance, "float64") + bn.epsilon)
    gamma = np.asarray(bn.gamma, "float64")
    with np.errstate(divide="ignore"):
        ratio = np.asarray(bn.beta, "float64") * sigma / gamma
    return bias - np.asarray(bn.moving_mean, "float64") + ratio


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("bias", "norm"), [(False, True), (True, True), (True, False)])
def test_folded_biases_become_integers(bits, bias, norm):
    model = student(bits, bias, norm)
    pairs = [("first", "norm1"), ("deep", "norm2"), ("head", None)]
    pairs = [(layer, bn if norm else None) for layer, bn in pairs]
    before = [folded_bias(model, *pair) for pair in pairs]
    gmpq.snap_biases(model)
    for pair, old in zip(pairs, before, strict=True):
        unit = bias_unit(model.get_layer(pair[0]))
        new = folded_bias(model, *pair)
        live = np.isfinite(old)
        new, old, unit = new[live], old[live], unit[live]
        assert (np.abs(new - old) <= 0.51 * unit + 1e-6).all()
        off = np.abs(new - np.round(new / unit) * unit)
        assert (off <= 3e-7).all()  # the float32 that holds the moving mean


def test_twice_is_once_and_kernels_stay():
    model = student(3, bias=False, norm=True)
    kernels = [np.array(w) for w in model.weights if "kernel" in w.path]
    gmpq.snap_biases(model)
    once = model(images()).numpy()
    gmpq.snap_biases(model)
    np.testing.assert_allclose(model(images()), once, atol=1e-5)
    for weight, old in zip(
        [w for w in model.weights if "kernel" in w.path], kernels, strict=True
    ):
        np.testing.assert_array_equal(weight, old)


def test_statistics_are_those_of_the_rounded_layers_before():
    model = student(2, bias=True, norm=True)
    gmpq.snap_biases(model, [(images(), None)])
    for name, norm in (("first", "norm1"), ("deep", "norm2")):
        layer, norm = model.get_layer(name), model.get_layer(norm)
        values = keras.Model(model.inputs, layer.output)(images()).numpy()
        np.testing.assert_allclose(
            norm.moving_variance, values.var(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6
        )
        unit = bias_unit(layer)
        gap = np.abs(norm.moving_mean - values.mean(axis=(0, 1, 2)))
        assert (gap <= 0.51 * unit + 1e-6).all()


def test_statistics_of_a_shared_normalization_stay():
    x = inputs = keras.Input((8, 8, 3))
    norm = layers.BatchNormalization(name="norm")
    for name in ("a", "b"):
        x = norm(layers.Conv2D(3, 3, padding="same", name=name)(x))
    model = keras.Model(inputs, layers.Flatten()(x))
    quantized = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 8, 8))
    gmpq.calibrate(quantized, [images()])
    gmpq.snap_biases(quantized, [images()])
    np.testing.assert_array_equal(quantized.get_layer("norm").moving_variance, 1.0)
