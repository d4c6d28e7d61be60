import functools

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from tests.export.random_models import random_images, random_model, random_policy

SEEDS = range(20)
MORE_SEEDS = range(20, 120)
STORAGES = ("fast", "packed", "smallest")


@functools.lru_cache(maxsize=1)  # the storages of a seed come one after the other
def make(seed):
    model = random_model(seed)
    policy = random_policy(model, seed)
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, [(random_images(model, 32, seed + 1000),)])
    gmpq.snap_biases(student)
    return student, policy, random_images(model, 32, seed + 2000)


def check(seed, storage, path):
    """Export, which compares codes, layers and decisions, and run what was written.

    In every storage: convolutions in INT4 and INT2 are dense layers over patches.
    """
    student, policy, x = make(seed)
    report = export_tflite(student, path, storage=storage, verify_data=x)
    assert all(layer.codes_equal for layer in report.layers)
    for layer in report.layers:
        bits = policy[layer.name]
        assert (layer.weight_bits, layer.activation_bits) == (
            bits.weight_bits,
            bits.activation_bits,
        )
    wanted = [np.asarray(v) for v in keras.tree.flatten(student(x, training=False))]
    received = TFLiteModel(path).predict(x)
    received = received if isinstance(received, list) else [received]
    for want, have in zip(wanted, received, strict=True):
        assert want.shape == have.shape
        assert np.isfinite(have).all()
        assert np.abs(want - have).mean() < 0.02 * np.ptp(want)


@pytest.mark.quick_rows(9)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_model_exports(tmp_path, seed, storage):
    check(seed, storage, tmp_path / "m.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_more_random_models_export(tmp_path, seed, storage):
    check(seed, storage, tmp_path / "m.tflite")


def test_a_seed_is_a_model():
    one, two = random_model(3), random_model(3)
    assert one.to_json().replace(one.name, two.name) == two.to_json()
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_seeds_cover_what_the_exporter_claims():
    models = [random_model(seed) for seed in SEEDS]
    layers = [layer for model in models for layer in model.layers]
    kinds = {type(layer).__name__ for layer in layers}
    assert kinds >= set(
        "Activation Add AveragePooling2D BatchNormalization Concatenate Conv2D "
        "Cropping2D Dense DepthwiseConv2D Dropout Flatten GlobalAveragePooling2D "
        "GlobalMaxPooling2D MaxPooling2D ReLU Rescaling Reshape Softmax UpSampling2D "
        "ZeroPadding2D".split()
    )
    options = {
        (name, str(getattr(layer, name)))
        for layer in layers
        for name in ("padding", "strides", "groups", "depth_multiplier")
        if hasattr(layer, name)
    }
    assert options >= {
        ("padding", "same"),
        ("padding", "valid"),
        ("strides", "(2, 2)"),
        ("groups", "2"),
        ("depth_multiplier", "2"),
    }
    assert any(getattr(layer, "dilation_rate", 1) == (2, 2) for layer in layers)
    assert any(len(layer._inbound_nodes) > 1 for layer in layers)  # shared
    assert any(len(model.inputs) > 1 for model in models)
    assert any(len(model.outputs) > 1 for model in models)
