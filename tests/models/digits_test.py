"""The digits networks: their shapes, and that one learns."""

import keras
import numpy as np
import pytest

from gmpq_tf.models import build_model


def test_layers_and_last_feature_map():
    model = build_model("digits_cnn", (8, 8, 1), 10)
    searchable = [
        layer.name
        for layer in model.layers
        if isinstance(
            layer,
            keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense,
        )
    ]
    assert searchable == [
        "stem_conv",
        "stage1_conv1",
        "stage1_conv2",
        "stage2_depthwise",
        "stage2_pointwise",
        "stage3_conv",
        "head_dense",
    ]
    assert model.get_layer("stage3_relu").output.shape == (None, 4, 4, 48)
    assert model.output_shape == (None, 10)


def test_number_of_parameters_is_the_closed_form():
    model = build_model("digits_cnn", (8, 8, 1), 10)
    kernels = 9 * 16 + 2 * 9 * 16 * 16 + 9 * 16 + 16 * 32 + 9 * 32 * 48
    normalization = 4 * (4 * 16 + 32 + 48)
    assert model.count_params() == kernels + normalization + 48 * 10 + 10


def test_parameters_of_the_inverted_residuals_are_the_closed_form():
    model = build_model("digits_mobilenet", (8, 8, 1), 10)
    kernels, normalization = 9 * 32, 32
    for width, channels in ((32, 32), (32, 48), (48, 48)):
        wide = 4 * width
        kernels += width * wide + 9 * wide + wide * channels
        normalization += 2 * wide + channels
    assert model.count_params() == kernels + 4 * normalization + 48 * 10 + 10
    assert model.get_layer("block3_add").output.shape == (None, 4, 4, 48)


@pytest.mark.slow
def test_it_learns_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[..., None]
    keras.utils.set_random_seed(0)
    model = build_model("digits_cnn", (8, 8, 1), 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(4e-3), loss, metrics=["accuracy"])
    model.fit(images[:1437], digits.target[:1437], 64, epochs=6, verbose=0)
    _, accuracy = model.evaluate(images[1437:], digits.target[1437:], verbose=0)
    assert accuracy > 0.9
