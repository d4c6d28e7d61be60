"""The policy of a classifier in the detector that it is the backbone of."""

import keras
import pytest

from gmpq_tf.graph import searchable_names
from gmpq_tf.models import build_model
from gmpq_tf.policy import BitwidthPolicy, PolicyError


@pytest.fixture(scope="module")
def detector():
    return build_model("ssd_resnet8", (32, 32, 3), 2)


@pytest.fixture(scope="module")
def policy():
    model = build_model("resnet8", (32, 32, 3), 10)
    names = searchable_names(model)
    bits = {n: (2 + i % 3, 2 + i % 2) for i, n in enumerate(names)}
    return BitwidthPolicy("resnet8", bits, {"strategy": "gmpq", "seed": 3})


def test_the_backbone_takes_the_bits_and_the_rest_others(detector, policy, tmp_path):
    adapted = policy.adapt(detector, others=(6, 7), drop=["head_dense"])
    adapted.check(searchable_names(detector))
    assert list(adapted) == searchable_names(detector)
    backbone = [name for name in policy if name != "head_dense"]
    assert len(backbone) == 9
    assert all(adapted[name] == policy[name] for name in backbone)
    rest = {adapted[name] for name in adapted if name not in backbone}
    assert {(b.weight_bits, b.activation_bits) for b in rest} == {(6, 7)}
    assert adapted.model == "ssd_resnet8"
    config = adapted.made_by["config"]
    assert config["policy"]["seed"] == 3 and config["policy_model"] == "resnet8"
    assert list(config["others"]) == [6, 7] and list(config["drop"]) == ["head_dense"]
    adapted.save(tmp_path / "p.json")
    assert BitwidthPolicy.load(tmp_path / "p.json") == adapted
    heads = policy.adapt(detector, drop=("head_dense", "stem_conv"))
    assert (heads["boxes0"].weight_bits, heads["stem_conv"].weight_bits) == (8, 8)


@pytest.mark.parametrize(
    ("changes", "drop", "said"),
    [
        ({}, (), "unknown=\\['head_dense'\\]"),
        ({}, ("head_dnse",), "'head_dense'"),
        ({"stem_conv": "stem_cnv"}, ("head_dense",), "stem_conv"),
        ({}, None, "of which 0 layers match"),
    ],
)
def test_what_does_not_fit_is_refused(detector, policy, changes, drop, said):
    renamed = policy.rename(changes)
    drop = list(policy) if drop is None else drop
    with pytest.raises(PolicyError, match=said):
        renamed.adapt(detector, drop=drop)


def test_others_must_be_bits(detector, policy):
    with pytest.raises(PolicyError, match="9"):
        policy.adapt(detector, others=(8, 9), drop=["head_dense"])


def test_a_shorter_backbone_of_the_same_names_is_refused(policy):
    longer = build_model("ssd_resnet20", (32, 32, 3), 2)
    said = "'resnet8', between whose layers 'ssd_resnet20' has 8 more.*stage1_block2"
    with pytest.raises(PolicyError, match=said):
        policy.adapt(longer, drop=["head_dense"])
    names = [n for n in searchable_names(longer) if "_block" in n]
    others = BitwidthPolicy("own", dict.fromkeys(names, (8, 8)))
    known = others.merge(policy.rename({}))
    assert known.adapt(longer, drop=["head_dense"])["stem_conv"] == policy["stem_conv"]


def test_a_detector_of_two_stages_takes_its_backbone():
    """What chooses regions stands between its third and its fourth stage."""
    source = build_model("resnet18", (32, 32, 3), 2)
    bits = dict.fromkeys(searchable_names(source), (4, 5))
    policy = BitwidthPolicy("resnet18", bits)
    model = build_model("faster_rcnn_resnet18", (64, 64, 3), 2, alpha=0.125)
    adapted = policy.adapt(model, drop=["head_dense"])
    taken = [name for name, own in adapted.items() if own.weight_bits == 4]
    assert set(taken) == set(policy) - {"head_dense"}


def test_layers_before_and_after_the_backbone_are_others():
    x = inputs = keras.Input((8, 8, 3))
    for name in ("adapter", "one", "two", "head"):
        x = keras.layers.Conv2D(3, 1, name=name)(x)
    model = keras.Model(inputs, x)
    policy = BitwidthPolicy("own", {"one": (3, 4), "two": (4, 3)})
    adapted = policy.adapt(model)
    assert [b.weight_bits for _, b in adapted.items()] == [8, 3, 4, 8]
    with pytest.raises(PolicyError, match="has 1 more, \\['two'\\]"):
        BitwidthPolicy("own", {"one": (3, 4), "head": (4, 3)}).adapt(model)
