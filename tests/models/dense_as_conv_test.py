"""Dense layers that become dilated convolutions, against index arithmetic."""

import keras
import numpy as np
import pytest

from gmpq_tf.models import build_model
from gmpq_tf.models.foreign import weights as weights_module
from gmpq_tf.models.foreign.dense_as_conv import dense_as_conv
from gmpq_tf.models.foreign.weights import Pretrained


def test_every_third_row_and_column_and_every_fourth_output_is_kept():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(7 * 7 * 5, 8)), rng.normal(size=8)
    found, kept = dense_as_conv(kernel, bias, (3, 3, 5, 2))
    for row in range(3):
        for column in range(3):
            for channel in range(5):
                for unit in range(2):
                    place = ((3 * row) * 7 + 3 * column) * 5 + channel
                    wanted = kernel[place, 4 * unit]
                    assert found[row, column, channel, unit] == wanted
    np.testing.assert_array_equal(kept, bias[[0, 4]])


def test_a_layer_on_vectors_becomes_a_1x1_convolution():
    kernel = np.arange(16 * 12.0).reshape(16, 12)
    found, kept = dense_as_conv(kernel, np.arange(12.0), (1, 1, 4, 3))
    np.testing.assert_array_equal(found[0, 0], kernel[::4, ::4])
    np.testing.assert_array_equal(kept, [0, 4, 8])


def test_the_dilated_convolution_is_the_dense_layer_on_sparse_maps():
    """Where the values between the kept ones are zero, both compute the same."""
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(7 * 7 * 2, 8)).astype("float32")
    kernel, _ = dense_as_conv(dense, np.zeros(8), (3, 3, 2, 8))
    image = np.zeros((1, 7, 7, 2), "float32")
    image[:, ::3, ::3] = rng.normal(size=(1, 3, 3, 2))
    found = keras.ops.conv(image, kernel, padding="valid", dilation_rate=3)
    np.testing.assert_allclose(found[0, 0, 0], image.reshape(-1) @ dense, rtol=1e-4)


@pytest.mark.parametrize(
    "stored, shape",
    [
        ((512, 4096), (3, 3, 512, 1024)),  # of 32 pixels: one place
        ((7 * 7 * 5, 8), (3, 3, 4, 2)),
        ((7 * 7 * 5, 3), (3, 3, 5, 4)),
        ((10, 8), (1, 1, 4, 2)),
    ],
)
def test_what_has_no_equal_steps_is_left(stored, shape):
    assert dense_as_conv(np.zeros(stored), np.zeros(stored[1]), shape) is None


class Narrow:
    """A classifier of VGG-16's names with a few channels, as the file would fill it."""

    def __init__(self, monkeypatch, new=()):
        self.new = new
        monkeypatch.setattr(weights_module, "build_pretrained", self)
        monkeypatch.setattr(weights_module, "build_model", self.detector)

    def __call__(self, name, shape, *_, **__):
        assert name == "vgg16" and shape == (224, 224, 3)
        x = inputs = keras.Input((7, 7, 3))
        x = keras.layers.Flatten()(x)
        for unit, layer in ((16, "head_fc1"), (16, "head_fc2"), (4, "head_dense")):
            x = keras.layers.Dense(unit, name=layer, bias_initializer="normal")(x)
        self.classifier = keras.Model(inputs, x)
        return Pretrained(self.classifier, ("Weights: file.",), self.new)

    def detector(self, *_, **__):
        x = inputs = keras.Input((7, 7, 3))
        options = {"padding": "same", "dilation_rate": 6}
        x = keras.layers.Conv2D(4, 3, name="head_fc1", **options)(x)
        x = keras.layers.Conv2D(4, 1, name="head_fc2")(x)
        return keras.Model(inputs, keras.layers.Conv2D(2, 1, name="extra1_conv1")(x))


def made():
    return weights_module._with_backbone("ssd300_vgg16", (300, 300, 3), 3, "f", "rgb")


def test_a_detector_takes_the_dense_layers_of_its_classifier(monkeypatch):
    narrow = Narrow(monkeypatch)
    found = made()
    first, second = (
        narrow.classifier.get_layer(name).get_weights()
        for name in ("head_fc1", "head_fc2")
    )
    own = found.model.get_layer("head_fc1").get_weights()
    np.testing.assert_array_equal(
        own[0], first[0].reshape(7, 7, 3, 16)[::3, ::3, :, ::4]
    )
    np.testing.assert_array_equal(own[1], first[1][::4])
    own = found.model.get_layer("head_fc2").get_weights()
    np.testing.assert_array_equal(own[0][0, 0], second[0][::4, ::4])
    assert found.new == ("extra1_conv1",)
    assert any("head_fc1, head_fc2" in note for note in found.notes)


def test_dense_layers_that_the_file_did_not_fill_are_not_taken(monkeypatch):
    Narrow(monkeypatch, new=("head_fc1", "head_dense"))
    assert made().new == ("head_fc1", "head_fc2", "extra1_conv1")


@pytest.mark.slow
def test_ssd300_takes_vgg16_s_own_file(tmp_path):
    """At full size: 138 million weights."""
    keras.utils.set_random_seed(0)
    classifier = build_model("vgg16", (224, 224, 3), 10)
    classifier.save_weights(tmp_path / "vgg16.weights.h5")
    found = weights_module.build_pretrained(
        "ssd300_vgg16", (300, 300, 3), 3, tmp_path / "vgg16.weights.h5"
    )
    kernel = classifier.get_layer("head_fc1").get_weights()[0]
    own = found.model.get_layer("head_fc1").get_weights()[0]
    assert own.shape == (3, 3, 512, 1024)
    np.testing.assert_array_equal(own, kernel.reshape(7, 7, 512, -1)[::3, ::3, :, ::4])
    assert not {"head_fc1", "head_fc2", "stage1_conv1"} & set(found.new)
