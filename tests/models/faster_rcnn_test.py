"""Faster R-CNN of ResNet-18 against the sizes, costs and names of its papers."""

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.detection import BoxError
from gmpq_tf.detection.region_layers import RegionSearch, region_search_of
from gmpq_tf.ends import end_names
from gmpq_tf.graph import layer_macs, searchable_names
from gmpq_tf.models import build_model, load_model
from gmpq_tf.models.foreign.weights import build_pretrained
from tests.models.golden_names import NAMES

NAME = "faster_rcnn_resnet18"
ENDS = ["rpn_boxes", "rpn_scores", "roi_scores", "roi_boxes"]


@pytest.fixture(scope="module")
def whole():
    return build_model(NAME, (600, 1000, 3), 20)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return build_model(NAME, (64, 64, 3), 2, alpha=0.125, regions=6)


def test_it_has_the_paper_s_parameters_anchors_and_costs(whole):
    sizes = [int(np.prod(v.shape)) for v in whole.trainable_variables]
    assert sum(sizes) == 12_433_622  # one number an anchor, not two
    search = region_search_of(whole)
    assert search.count == 38 * 63 * 9 and search.regions == 300
    macs = layer_macs(whole)
    stages = [
        sum(n for name, n in macs.items() if name.startswith(start))
        for start in ("stem", "stage1", "stage2", "stage3", "stage4")
    ]
    assert stages[:4] == [1_411_200_000, 5_529_600_000, 4_915_200_000, 5_020_581_888]
    assert stages[4] == 300 * 134_217_728
    assert macs["rpn_conv"] == 38 * 63 * 9 * 256 * 512
    assert macs["roi_scores"] == 300 * 512 * 21
    shapes = dict(zip(("objects", *ENDS[:2]), whole.output_shape, strict=True))
    assert shapes["objects"] == (None, 300, 4 + 5 * 21)
    assert shapes["rpn_scores"] == (None, search.count, 1)


def test_costs_in_bits_count_every_region(small):
    cost = gmpq.count_cost(small, gmpq.BitwidthPolicy.uniform(small, 8, 8))
    macs = layer_macs(small)
    assert cost.bit_ops == 64 * sum(macs.values())
    assert macs["roi_boxes"] == 6 * 64 * 12


def test_names_and_ends(whole, small):
    assert sorted(searchable_names(whole)) == sorted(NAMES[NAME].split())
    assert searchable_names(small) == searchable_names(whole)
    assert sorted(end_names(small)) == sorted(["stem_conv", *ENDS])
    policy = gmpq.BitwidthPolicy.uniform(small, 4, 4)
    kept = [name for name, bits in policy.items() if bits.weight_bits == 8]
    assert sorted(kept) == sorted(["stem_conv", *ENDS])


def test_a_policy_of_the_classifier_serves(small):
    classifier = build_model("resnet18", (32, 32, 3), 10)
    policy = gmpq.BitwidthPolicy.uniform(classifier, 3, 5)
    own = policy.adapt(small, others=(8, 8), drop=("head_dense",))
    assert own["stage4_block2_conv2"] == policy["stage4_block2_conv2"]
    assert own["rpn_conv"].weight_bits == own["roi_boxes"].activation_bits == 8


@pytest.mark.slow
def test_a_backbone_takes_the_weights_of_its_classifier(tmp_path):
    classifier = build_model("resnet18", (64, 64, 3), 10)
    classifier.save(tmp_path / "c.keras")
    found = build_pretrained(NAME, (64, 64, 3), 2, tmp_path / "c.keras").model
    names = [layer.name for layer in classifier.layers if layer.weights][:-1]
    for name in names:
        pair = (model.get_layer(name).get_weights() for model in (found, classifier))
        assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))


@pytest.mark.slow
def test_it_is_read_back_from_its_file(small, tmp_path):
    small.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert region_search_of(loaded) == region_search_of(small)
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    for one, other in zip(
        small.predict_on_batch(images).values(),
        loaded.predict_on_batch(images).values(),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"scales": ()}, "scales and ratios above"),
        ({"ratios": (0.0,)}, "scales and ratios above"),
        ({"regions": 0}, "Received: .*regions=0"),
        ({"before": 10}, "no fewer candidates than regions"),
        ({"iou_threshold": 1.5}, "iou_threshold=1.5"),
        ({"feature_shape": (4,)}, "two sides"),
    ],
)
def test_a_search_that_finds_nothing_is_refused(fields, text):
    options = {"feature_shape": (4, 4), "image_shape": (64, 64), **fields}
    with pytest.raises(BoxError, match=text):
        RegionSearch(**options)
