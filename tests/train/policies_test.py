import json

import pytest

from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.train.policies import read_policy
from tests.train.conftest import small_model

LAYERS = {"first": (8, 8), "middle": (3, 4), "last": (2, 5)}


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "policy.json"
    BitwidthPolicy("small", LAYERS).save(path)
    return str(path)


def test_uniform_bits_are_those_of_the_model():
    expected = {"first": (8, 8), "middle": (3, 4), "last": (8, 8)}
    found = read_policy("uniform:3,4", small_model())
    assert found == BitwidthPolicy("small", expected)


def test_a_file_as_it_is_and_renamed(policy_file, tmp_path):
    model = small_model()
    assert read_policy(policy_file, model) == BitwidthPolicy("small", LAYERS)
    prefixed = read_policy(policy_file, model, "prefix=net_")
    assert list(prefixed) == ["net_first", "net_middle", "net_last"]
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"last": "head"}))
    assert list(read_policy(policy_file, model, str(names))) == [
        "first",
        "middle",
        "head",
    ]


@pytest.mark.parametrize("text", ["uniform:3", "none.json", "random:1", "uniform:3,x"])
def test_other_text_is_refused(text):
    with pytest.raises(PolicyError, match=r"uniform:W,A.*Received: "):
        read_policy(text, small_model())


def test_bits_out_of_range_are_refused():
    with pytest.raises(PolicyError, match="=9"):
        read_policy("uniform:9,3", small_model())


def test_uniform_bits_have_no_names_to_change():
    with pytest.raises(PolicyError, match=r"Only .* policy file.*prefix=a_"):
        read_policy("uniform:3,3", small_model(), "prefix=a_")
