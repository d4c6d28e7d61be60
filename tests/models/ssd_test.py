"""Detectors against the sizes, costs and names of their papers."""

import math

import keras
import numpy as np
import pytest

from gmpq_tf.detection import default_boxes_of
from gmpq_tf.graph import layer_macs, searchable_names
from gmpq_tf.models import MODELS, build_model, load_model
from gmpq_tf.models.foreign.weights import build_pretrained
from gmpq_tf.models.ssd import BACKBONES
from gmpq_tf.models.vgg import vgg16_features
from tests.models.golden_names import NAMES

DETECTORS = [name for name in MODELS if name.startswith("ssd")]


def size(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


@pytest.fixture(scope="module")
def ssd300():
    return build_model("ssd300_vgg16", (300, 300, 3), 20)


def test_ssd300_has_the_paper_s_boxes_costs_and_parameters(ssd300):
    macs = layer_macs(ssd300)
    assert default_boxes_of(ssd300).count == 8732
    assert sum(macs.values()) == 31_373_537_792
    trunk = sum(count for name, count in macs.items() if name.startswith("stage"))
    assert trunk == 27_816_496_128
    assert macs["head_fc1"] == 1_703_411_712
    assert macs["head_fc2"] == 378_535_936
    heads = {
        "boxes": (106463232, 79847424, 11059200, 1382400, 331776, 36864),
        "scores": (558931968, 419198976, 58060800, 7257600, 1741824, 193536),
    }
    for kind, counts in heads.items():
        assert [macs[f"{kind}{level}"] for level in range(6)] == list(counts)
    extras = {
        "extra1": (94633984, 117964800),
        "extra2": (6553600, 7372800),
        "extra3": (819200, 2654208),
        "extra4": (294912, 294912),
    }
    for name, counts in extras.items():
        assert [macs[f"{name}_conv{n}"] for n in (1, 2)] == list(counts)
    # The paper has a scale of 512 channels where BatchNormalization has two.
    assert size(ssd300.trainable_variables) == 26_285_486 + 512


def test_ssd300_with_the_paper_s_norm_has_its_parameters():
    model = build_model("ssd300_vgg16", (300, 300, 3), 20, source_norm="l2")
    assert size(model.trainable_variables) == size(model.variables) == 26_285_486
    values = np.abs(np.random.default_rng(0).normal(size=(1, 4, 4, 512)))
    scale = model.get_layer("stage4_scale")
    found = scale(model.get_layer("stage4_norm")(values.astype("float32")))
    wanted = 20 * values / np.linalg.norm(values, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="source_norm='l1'"):
        build_model("ssd300_vgg16", (300, 300, 3), 20, source_norm="l1")


def test_the_smallest_detector_costs_what_a_phone_has():
    model = build_model("ssd_resnet8", (160, 160, 3), 3)
    macs = layer_macs(model)
    backbone = searchable_names(build_model("resnet8", (32, 32, 3), 10))[:-1]
    # A quarter of ResNet-8 at 160 pixels, as the stem halves the image.
    whole = layer_macs(build_model("resnet8", (160, 160, 3), 10))
    assert sum(macs[n] for n in backbone) * 4 == sum(whole[n] for n in backbone)
    assert sum(macs.values()) == 122_060_800
    assert size(model.trainable_variables) == 366_848
    shapes = default_boxes_of(model).feature_shapes
    assert shapes == ((40, 40), (20, 20), (10, 10), (5, 5))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", DETECTORS)
def test_names_are_the_backbone_s_and_depend_on_nothing(name, tmp_path):
    one = build_model(name, (64, 64, 3), 3)
    softmax = {"classifier_activation": "softmax"}
    other = build_model(name, (32, 48, 1), 2, **softmax)
    assert sorted(searchable_names(one)) == sorted(NAMES[name].split())
    assert set(searchable_names(one)) == set(searchable_names(other))
    dropped = {"head_dense"}
    assert set(NAMES[BACKBONES[name]].split()) - dropped <= set(NAMES[name].split())
    for model, classes in ((one, 3), (other, 2)):
        count = default_boxes_of(model).count
        shapes = dict(zip(model.output_names, model.output_shape, strict=True))
        assert shapes["boxes"] == (None, count, 4)
        assert shapes["scores"] == (None, count, classes + 1)
    images = np.random.default_rng(0).random((2, 32, 48, 1), np.float32)
    outputs = other(images)
    np.testing.assert_allclose(np.sum(outputs["scores"], -1), 1, rtol=1e-5)
    other.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert default_boxes_of(loaded) == default_boxes_of(other)
    again = loaded(images)
    for key in ("boxes", "scores"):
        np.testing.assert_allclose(again[key], outputs[key], rtol=1e-5, atol=1e-5)


def test_rows_are_ordered_level_place_box():
    """Moving an object moves the rows that see it, and theirs only."""
    keras.utils.set_random_seed(0)
    model = build_model("ssd_resnet8", (64, 64, 3), 2)
    centers = default_boxes_of(model).centers()
    images = np.zeros((1, 64, 64, 3), "float32")
    images[0, 6:10, 54:58] = 1  # at (8, 56) of 64
    empty = model(np.zeros_like(images))["scores"]
    moved = np.abs(np.asarray(model(images)["scores"] - empty)).sum(-1)[0]
    finest = slice(0, 16 * 16 * 4)
    most = centers[finest][np.argsort(moved[finest])[-40:]]
    np.testing.assert_allclose(most[:, :2].mean(0), (8 / 64, 56 / 64), atol=0.06)


@pytest.mark.parametrize(
    "name", ["ssd_resnet8", pytest.param("ssd_mobilenet_v2", marks=pytest.mark.slow)]
)
def test_a_backbone_takes_the_weights_of_its_classifier(name, tmp_path):
    classifier = build_model(BACKBONES[name], (32, 32, 3), 10)
    for layer in classifier.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign_add(np.full(layer.moving_mean.shape, 0.25))
    classifier.save(tmp_path / "c.keras")
    found = build_pretrained(name, (48, 48, 3), 2, tmp_path / "c.keras")
    names = [layer.name for layer in classifier.layers if layer.weights]
    for layer in names[:-1]:
        pairs = zip(
            found.model.get_layer(layer).get_weights(),
            classifier.get_layer(layer).get_weights(),
            strict=True,
        )
        assert all(np.array_equal(one, other) for one, other in pairs)
    assert "boxes0" in found.notes[-1] and names[0] not in found.notes[-1]
    found.model.save(tmp_path / "d.keras")
    again = build_pretrained(name, (48, 48, 3), 2, tmp_path / "d.keras")
    head = found.model.get_layer("boxes0").get_weights()
    assert np.array_equal(again.model.get_layer("boxes0").get_weights()[0], head[0])


def paper_count(model):
    """Multiply-adds, and one more operation for each output, of the convolutions."""
    macs = layer_macs(model)
    outputs = sum(
        math.prod(layer.output.shape[1:])
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    return sum(n for name, n in macs.items() if name != "head_dense"), outputs


def test_both_full_precision_rows_of_the_paper_s_table_2():
    """Backbones alone, each output counted once more, at 32 x 32 bits."""
    inputs = keras.Input((300, 300, 3))
    trunk = keras.Model(inputs, vgg16_features(inputs)[-1])
    assert paper_count(trunk) == (27_112_246_272, 24_200_448)
    assert 1024 * sum(paper_count(trunk)) / 1e9 == pytest.approx(27_787.72, abs=0.01)
    resnet = build_model("resnet18", (600, 1000, 3), 20)
    assert paper_count(resnet) == (21_976_855_552, 29_820_800)
    assert 1024 * sum(paper_count(resnet)) / 1e9 == pytest.approx(22_534.84, abs=0.01)
