"""VGG-16 against the published count and at every size."""

import numpy as np
import pytest

from gmpq_tf.models import build_model

WIDTHS = [64, 64, 128, 128, *[256] * 3, *[512] * 6]  # column D of table 1


def count(pixels, classes):
    """3x3 convolutions and dense layers, each with a bias."""
    inputs = [3, *WIDTHS[:-1]]
    pairs = zip(inputs, WIDTHS, strict=True)
    convolutions = sum(9 * a * b + b for a, b in pairs)
    dense = (512 * pixels + 1) * 4096 + 4097 * 4096 + 4097 * classes
    return convolutions + dense


def test_number_of_parameters_is_the_closed_form():
    assert count(7 * 7, 1000) == 138_357_544  # torchvision's
    assert build_model("vgg16", (40, 64, 3), 9).count_params() == count(2, 9)


@pytest.mark.parametrize("shape", [(8, 8, 1), (33, 20, 3)])
def test_any_size_gives_finite_logits(shape):
    model = build_model("vgg16", shape, 4)
    logits = np.asarray(model(np.random.default_rng(0).random((2, *shape), np.float32)))
    assert logits.shape == (2, 4)
    assert np.isfinite(logits).all()


def test_feature_maps_halve():
    model = build_model("vgg16", (70, 64, 3), 4)
    for stage, (height, width) in enumerate(((35, 32), (17, 16), (8, 8), (4, 4)), 1):
        shape = model.get_layer(f"stage{stage}_pool").output.shape
        assert shape[1:3] == (height, width)
