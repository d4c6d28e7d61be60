"""MobileNetV2 against Keras's own."""

import keras
import numpy as np
import pytest

from gmpq_tf.models import build_model


def test_published_number_of_parameters():
    model = build_model("mobilenet_v2", (224, 224, 3), 1000)
    count = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert count == 3_504_872


def randomize(model):
    """Give every weight, statistics too, a value that its neighbours do not have."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        spread = np.sqrt(2 / max(1, np.prod(weight.shape[:-1])))
        value = random.normal(0, spread if weight.shape.rank > 1 else 0.1, weight.shape)
        is_scale = weight.name in ("gamma", "moving_variance")
        weight.assign(1 + np.abs(value) if is_scale else value)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("alpha", [0.35, 0.5, 1.0, 1.4])
def test_agrees_with_keras_applications(alpha):
    reference = keras.applications.MobileNetV2(
        (96, 96, 3), alpha, weights=None, classes=10, classifier_activation=None
    )
    model = build_model("mobilenet_v2", (96, 96, 3), 10, alpha=alpha)
    randomize(reference)
    model.set_weights(reference.get_weights())
    images = np.random.default_rng(1).uniform(-1, 1, (2, 96, 96, 3))
    images = images.astype(np.float32)
    expected = reference(images).numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(model(images), expected, atol=1e-4, rtol=1e-4)


def test_small_images_keep_a_feature_map():
    model = build_model("mobilenet_v2", (32, 32, 3), 10)
    assert model.get_layer("head_relu").output.shape == (None, 4, 4, 1280)
    shrunk = build_model("mobilenet_v2", (32, 32, 3), 10, stem="imagenet")
    assert shrunk.get_layer("head_relu").output.shape == (None, 1, 1, 1280)


@pytest.mark.parametrize("side", [64, 65])
def test_symmetric_padding_keeps_every_size(side):
    sizes = [
        [
            layer.output.shape
            for layer in build_model(
                "mobilenet_v2", (side, side, 3), 2, alpha=0.35, padding=padding
            ).layers
            if not layer.name.endswith("_pad")
        ]
        for padding in ("same", "symmetric")
    ]
    assert sizes[0] == sizes[1]
    with pytest.raises(ValueError, match="padding='valid'"):
        build_model("mobilenet_v2", (8, 8, 3), 2, padding="valid")


def test_layer_names():
    names = [layer.name for layer in build_model("mobilenet_v2", (32, 32, 3), 2).layers]
    block = [name for name in names if name.startswith("stage2_block2_")]
    assert block == [
        f"stage2_block2_{part}"
        for part in (
            "expand expand_bn expand_relu depthwise depthwise_bn depthwise_relu "
            "project project_bn add"
        ).split()
    ]
