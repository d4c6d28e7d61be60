"""Layer names of other libraries, against their own models."""

import keras
import numpy as np
import pytest

from gmpq_tf.data import InputScaling, scale_images
from gmpq_tf.models import build_model
from gmpq_tf.models.foreign.layouts import LAYOUTS
from tests.models.references import (
    BASIC,
    BOTTLENECK,
    mobilenet_state,
    resnet_state,
)

STATES = {
    "mobilenet_v2": mobilenet_state,
    "resnet18": lambda classes: resnet_state(BASIC, (2, 2, 2, 2), classes),
    "resnet50": lambda classes: resnet_state(BOTTLENECK, (3, 4, 6, 3), classes),
}
ROWS = [(name, layout) for name, rows in LAYOUTS.items() for layout in rows]
IDS = [layout.source for _, layout in ROWS]


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(("name", "layout"), ROWS, ids=IDS)
def test_both_sides_are_complete(name, layout):
    ours = build_model(name, (8, 8, 3), 2)
    weighted = {layer.name for layer in ours.layers if layer.weights}
    assert set(layout.layers) == weighted
    network = layout.source.rsplit(".", 1)[-1]
    if layout.library == "torchvision":
        theirs = {key.rpartition(".")[0] for key in STATES[network](2)}
    else:
        build = getattr(keras.applications, network)
        reference = build(weights=None, input_shape=(32, 32, 3), classes=2)
        theirs = {layer.name for layer in reference.layers if layer.weights}
        epsilons = {getattr(x, "epsilon", None) for x in reference.layers} - {None}
        assert (epsilons or {None}) == {layout.epsilon}
    assert set(layout.layers.values()) == theirs
    assert len(layout.layers) == len(theirs)


PREPROCESS = {
    "MobileNetV2": keras.applications.mobilenet_v2.preprocess_input,
    "ResNet50": keras.applications.resnet50.preprocess_input,
    "VGG16": keras.applications.vgg16.preprocess_input,
}


@pytest.mark.parametrize("layout", [x for _, x in ROWS if x.library == "keras"])
def test_images_are_scaled_as_preprocess_input_does(layout):
    given = dict(flag.removeprefix("--").split("=") for flag in layout.scaling.split())
    lists = {k: [float(x) for x in v.split(",")] for k, v in given.items() if "," in v}
    scaling = InputScaling(given["scaling"], lists.get("mean"), lists.get("std"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.float32)
    ours = np.asarray(scale_images(pixels, scaling))
    ours = ours[..., ::-1] if layout.channels == "bgr" else ours
    preprocess = PREPROCESS[layout.source.rsplit(".", 1)[-1]]
    np.testing.assert_allclose(ours, preprocess(pixels.copy()), atol=1e-3)
