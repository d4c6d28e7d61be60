"""The policy of a classifier in the detector that it is the backbone of."""

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
