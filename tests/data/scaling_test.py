"""The affine map from pixels to inputs, against NumPy."""

import json

import numpy as np
import pytest

from gmpq_tf.data import DataError, InputScaling, pixel_affine, scale_images

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
EXPECTED = {
    "0..255": lambda x: x,
    "0..1": lambda x: x / 255,
    "-1..1": lambda x: x / 127.5 - 1,
    "mean_std": lambda x: (x / 255 - np.array(MEAN)) / np.array(STD),
}


def make_scaling(kind):
    return InputScaling(kind, MEAN, STD) if kind == "mean_std" else InputScaling(kind)


@pytest.mark.parametrize("kind", EXPECTED)
def test_scaled_images_follow_the_formula(kind):
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    scaled = scale_images(pixels, make_scaling(kind)).numpy()
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(
        scaled, EXPECTED[kind](pixels.astype(float)), atol=1e-5, rtol=1e-6
    )


@pytest.mark.parametrize("kind", EXPECTED)
def test_affine_broadcasts_over_channels(kind):
    scale, offset = pixel_affine(make_scaling(kind))
    inputs = np.array([[0.0], [255.0]]) * scale + offset
    expected = EXPECTED[kind](np.array([[0.0] * 3, [255.0] * 3]))
    np.testing.assert_allclose(inputs + np.zeros((2, 3)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", EXPECTED)
def test_config_round_trip_through_json(kind):
    scaling = make_scaling(kind)
    config = json.loads(json.dumps(scaling.to_config()))
    assert InputScaling.from_config(config) == scaling


@pytest.mark.parametrize(
    "config, message",
    [
        ({"kind": "0..2"}, "Did you mean '0"),
        ({"kind": "mean_std"}, "needs `mean`"),
        ({"kind": "mean_std", "mean": [0.5], "std": [0.0]}, "above 0"),
        ({"kind": "mean_std", "mean": [120.0], "std": [60.0]}, "Divide by 255"),
        ({"kind": "mean_std", "mean": [0.5] * 3, "std": [0.2]}, "each channel"),
        ({"kind": "mean_std", "mean": 0.5, "std": [0.2]}, "sequence"),
        ({"kind": "0..1", "mean": [0.5], "std": [0.2]}, "only with"),
        ({"kind": "0..1", "average": 1}, "average"),
    ],
)
def test_bad_scaling_is_refused(config, message):
    with pytest.raises(DataError, match=message):
        InputScaling.from_config(config)
