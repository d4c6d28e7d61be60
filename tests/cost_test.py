import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.cost import (
    FULL_PRECISION_BITS,
    bit_ops,
    bit_ops_range,
    count_cost,
    packed_bytes,
)
from gmpq_tf.models import build_model
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
# Elements of what each of them reads.
INPUTS = {
    "conv": 32 * 32 * 3,
    "s1_conv1": 32 * 32 * 16,
    "s1_conv2": 32 * 32 * 16,
    "s2_conv1": 32 * 32 * 16,
    "s2_conv2": 16 * 16 * 32,
    "s2_shortcut": 32 * 32 * 16,
    "s3_conv1": 16 * 16 * 32,
    "s3_conv2": 8 * 8 * 64,
    "s3_shortcut": 16 * 16 * 32,
    "head": 64,
}


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


def test_activation_bytes_are_those_of_what_each_layer_reads(resnet8):
    rng = np.random.default_rng(1)
    bits = {name: tuple(rng.integers(2, 9, 2)) for name in MACS}
    cost = count_cost(resnet8, BitwidthPolicy("resnet8", bits))
    expected = {n: int(np.ceil(bits[n][1] * INPUTS[n] / 8)) for n in INPUTS}
    assert {layer.name: layer.input_elements for layer in cost.layers} == INPUTS
    assert {layer.name: layer.activation_bytes for layer in cost.layers} == expected
    assert cost.activation_bytes == sum(expected.values())
    full = count_cost(resnet8)
    assert full.activation_bytes == 4 * sum(INPUTS.values())


def test_what_is_no_kernel_is_counted_apart(resnet8):
    cost = count_cost(resnet8, BitwidthPolicy.uniform(resnet8, 3, 3))
    assert cost.other_params == resnet8.count_params() - sum(KERNELS.values())
    assert cost.other_bytes == 4 * cost.other_params


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
    assert {layer.name: layer.input_elements for layer in cost.layers} == {
        "depthwise": 2 * 64 * 6,
        "grouped": 64 * 6,
        "per_pixel": 64 * 4,
    }
    assert cost.params == model.count_params()


def test_activation_bytes_round_up():
    inputs = keras.Input((3, 1, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="conv")(inputs))
    cost = count_cost(model, BitwidthPolicy("m", {"conv": (2, 3)}))
    assert cost.activation_bytes == 2  # 9 bits


def test_bit_ops_of_numbers_arrays_and_tensors():
    assert bit_ops(10, 4, 3) == 120
    np.testing.assert_array_equal(bit_ops(np.array([1, 2]), 4, 3), [12, 24])
    expected_bits = tf.constant(3.5)
    assert float(bit_ops(10, expected_bits, tf.constant(2.0))) == 70.0


@pytest.mark.parametrize(
    ("params", "bits", "size"), [(0, 4, 0), (1, 2, 1), (5, 3, 2), (8, 3, 3), (7, 8, 7)]
)
def test_packed_bytes_round_up(params, bits, size):
    assert packed_bytes(params, bits) == size


# The networks of the paper's table 1 at 224 pixels, from their publications' tables:
# (output positions, kernel weights) of each layer.
def resnet18_layers():
    yield 112**2, 7 * 7 * 3 * 64
    channels = 64
    for side, width in ((56, 64), (28, 128), (14, 256), (7, 512)):
        for block in range(2):
            yield side**2, 9 * channels * width
            yield side**2, 9 * width * width
            if block == 0 and channels != width:
                yield side**2, channels * width
            channels = width
    yield 1, 512 * 1000


def resnet50_layers():
    """As published: the first 1x1 convolution of a stage has its stride."""
    yield 112**2, 7 * 7 * 3 * 64
    channels = 64
    stages = ((56, 64, 3), (28, 128, 4), (14, 256, 6), (7, 512, 3))
    for side, width, blocks in stages:
        for block in range(blocks):
            yield side**2, channels * width
            yield side**2, 9 * width * width
            yield side**2, width * 4 * width
            if block == 0:
                yield side**2, channels * 4 * width
            channels = 4 * width
    yield 1, 2048 * 1000


def mobilenet_v2_layers():
    yield 112**2, 9 * 3 * 32
    channels, side = 32, 112
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    stages += ((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, width, blocks, strides in stages:
        for block in range(blocks):
            wide = expansion * channels
            if expansion > 1:
                yield side**2, channels * wide
            side = side // strides if block == 0 else side
            yield side**2, 9 * wide
            yield side**2, wide * width
            channels = width
    yield side**2, 320 * 1280
    yield 1, 1280 * 1000


# GBOPs and "Param." of table 1 (full precision) with the unit of the latter: at 4 bytes
# a parameter ResNet18 has 46.8 MB, ResNet50 97.5 MiB and MobileNetV2 13.4 MiB.
PAPER = {
    "resnet18": (resnet18_layers, 1853.4e9, 46.8 * 1e6),
    "resnet50": (resnet50_layers, 3952.6e9, 97.5 * 2**20),
    "mobilenet_v2": (mobilenet_v2_layers, 337.9e9, 13.4 * 2**20),
}


@pytest.fixture(scope="module", params=sorted(PAPER))
def network(request):
    model = build_model(request.param, (224, 224, 3), 1000)
    return request.param, model, count_cost(model)


def test_imagenet_networks_cost_their_closed_form(network):
    name, _, cost = network
    layers = list(PAPER[name][0]())
    found = sorted((layer.macs, layer.params) for layer in cost.layers)
    assert found == sorted((positions * k, k) for positions, k in layers)
    assert cost.bit_ops == 1024 * sum(positions * k for positions, k in layers)


def test_imagenet_networks_have_the_papers_full_precision_rows(network):
    name, model, cost = network
    _, bit_ops_there, bytes_there = PAPER[name]
    if name == "mobilenet_v2":
        # The paper's 337.9 are its rounded 0.33 GMAC x 1024; table 2 of MobileNetV2's
        # own paper adds up to 0.3008.
        assert bit_ops_there == pytest.approx(0.33e9 * 1024, rel=1e-4)
        assert cost.macs == 300_774_272
        assert cost.bit_ops / bit_ops_there == pytest.approx(0.9115, abs=1e-4)
    else:
        assert cost.bit_ops == pytest.approx(bit_ops_there, rel=0.005)
        assert cost.weight_bytes == pytest.approx(bytes_there, rel=0.005)
    trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert 4 * trained == pytest.approx(bytes_there, rel=0.005)


def test_the_recorded_tables_are_what_is_counted_today(network, repo_root):
    name, _, cost = network
    path = repo_root / "results" / "cost_tables" / f"{name}.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    macs = {row["name"]: row["macs"] for row in recorded["layers"]}
    assert macs == {layer.name: layer.macs for layer in cost.layers}
    for key in ("macs", "params", "bit_ops", "weight_bytes", "activation_bytes"):
        assert recorded["total"][key] == getattr(cost, key)
