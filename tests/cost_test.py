import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.cost import (
    FULL_PRECISION_BITS,
    bit_ops,
    bit_ops_range,
    count_cost,
    weight_bytes,
)
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.space import SearchSpace

# (name, output positions, kernel size): MLPerf Tiny ResNet-8, counted by hand.
RESNET8 = [
    ("conv", 32 * 32, 3 * 3 * 3 * 16),
    ("s1_conv1", 32 * 32, 3 * 3 * 16 * 16),
    ("s1_conv2", 32 * 32, 3 * 3 * 16 * 16),
    ("s2_conv1", 16 * 16, 3 * 3 * 16 * 32),
    ("s2_conv2", 16 * 16, 3 * 3 * 32 * 32),
    ("s2_shortcut", 16 * 16, 16 * 32),
    ("s3_conv1", 8 * 8, 3 * 3 * 32 * 64),
    ("s3_conv2", 8 * 8, 3 * 3 * 64 * 64),
    ("s3_shortcut", 8 * 8, 32 * 64),
    ("head", 1, 64 * 10),
]
MACS = {name: positions * kernel for name, positions, kernel in RESNET8}
KERNELS = {name: kernel for name, _, kernel in RESNET8}


def conv(x, filters, size, strides, name):
    layer = keras.layers.Conv2D(filters, size, strides, padding="same", name=name)
    return keras.layers.BatchNormalization()(layer(x))


def block(x, filters, strides, name):
    y = keras.layers.ReLU()(conv(x, filters, 3, strides, f"{name}_conv1"))
    y = conv(y, filters, 3, 1, f"{name}_conv2")
    if strides > 1:
        layer = keras.layers.Conv2D(filters, 1, strides, name=f"{name}_shortcut")
        x = layer(x)
    return keras.layers.ReLU()(keras.layers.Add()([x, y]))


@pytest.fixture(scope="module")
def resnet8():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.ReLU()(conv(inputs, 16, 3, 1, "conv"))
    for number, (filters, strides) in enumerate([(16, 1), (32, 2), (64, 2)], 1):
        x = block(x, filters, strides, f"s{number}")
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(x))
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x), name="resnet8")


def test_macs_equal_the_hand_count(resnet8):
    cost = count_cost(resnet8)
    assert {layer.name: layer.macs for layer in cost.layers} == MACS
    assert {layer.name: layer.params for layer in cost.layers} == KERNELS
    assert cost.macs == sum(MACS.values()) == 12_501_632


def test_full_precision(resnet8):
    cost = count_cost(resnet8)
    assert cost.bit_ops == 12_501_632 * FULL_PRECISION_BITS**2
    assert round(cost.bit_ops / 1e9, 2) == 12.80
    assert cost.params == resnet8.count_params()
    assert cost.weight_bytes == 4 * resnet8.count_params()


@pytest.mark.parametrize(("bits", "giga"), [(4, 0.221), (3, 0.137), (2, 0.077)])
def test_uniform_policies_cost_what_the_hand_count_says(resnet8, bits, giga):
    cost = count_cost(resnet8, BitwidthPolicy.uniform(resnet8, bits, bits))
    ends = MACS["conv"] + MACS["head"]
    assert cost.bit_ops == 64 * ends + bits**2 * (cost.macs - ends)
    assert round(cost.bit_ops / 1e9, 3) == giga


def test_mixed_policy_sums_over_layers(resnet8):
    rng = np.random.default_rng(0)
    bits = {name: tuple(rng.integers(2, 9, 2)) for name in MACS}
    cost = count_cost(resnet8, BitwidthPolicy("resnet8", bits))
    assert cost.bit_ops == sum(MACS[n] * w * a for n, (w, a) in bits.items())
    kernels = sum(int(np.ceil(w * KERNELS[n] / 8)) for n, (w, _) in bits.items())
    others = resnet8.count_params() - sum(KERNELS.values())
    assert cost.weight_bytes == kernels + 4 * others


def test_policy_for_another_model_is_refused(resnet8):
    layers = dict.fromkeys(MACS, (4, 4)) | {"heat": (8, 8)}
    del layers["head"]
    with pytest.raises(PolicyError, match="mean 'head'"):
        count_cost(resnet8, BitwidthPolicy("resnet8", layers))


def test_range_is_that_of_the_extreme_policies(resnet8):
    def uniform(bits):
        return count_cost(resnet8, BitwidthPolicy.uniform(resnet8, bits, bits)).bit_ops

    assert bit_ops_range(resnet8, SearchSpace()) == (uniform(2), uniform(4))
    space = SearchSpace((3, 5), (2, 6), pinned={})
    low, high = bit_ops_range(resnet8, space)
    assert (low, high) == (6 * sum(MACS.values()), 30 * sum(MACS.values()))


def test_depthwise_and_shared_layers():
    inputs = keras.Input((8, 8, 6))
    depthwise = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")
    x = depthwise(depthwise(inputs))
    x = keras.layers.Conv2D(4, 1, groups=2, name="grouped")(x)
    model = keras.Model(inputs, keras.layers.Dense(5, name="per_pixel")(x))
    cost = count_cost(model)
    assert {layer.name: layer.macs for layer in cost.layers} == {
        "depthwise": 2 * 64 * 9 * 6,
        "grouped": 64 * 4 * 3,
        "per_pixel": 64 * 4 * 5,
    }
    assert cost.params == model.count_params()


def test_bit_ops_of_numbers_arrays_and_tensors():
    assert bit_ops(10, 4, 3) == 120
    np.testing.assert_array_equal(bit_ops(np.array([1, 2]), 4, 3), [12, 24])
    expected_bits = tf.constant(3.5)
    assert float(bit_ops(10, expected_bits, tf.constant(2.0))) == 70.0


@pytest.mark.parametrize(
    ("params", "bits", "size"), [(0, 4, 0), (1, 2, 1), (5, 3, 2), (8, 3, 3), (7, 8, 7)]
)
def test_weight_bytes_round_up(params, bits, size):
    assert weight_bytes(params, bits) == size
