import json

import pytest

from gmpq_tf.bits import PolicyError
from gmpq_tf.policy.file import read_policy_file, read_renaming


def test_reads_what_the_file_says_and_leaves_the_values_to_the_policy(tmp_path):
    path = tmp_path / "policy.json"
    layers = {"a": {"weight_bits": 99, "activation_bits": 3}}
    content = {"format": 1, "model": 5, "layers": layers, "made_by": {"seed": 7}}
    path.write_text(json.dumps(content))
    assert read_policy_file(path) == (5, {"a": (99, 3)}, {"seed": 7})


def test_a_prefix():
    assert read_renaming("prefix=backbone_") == "backbone_"


def test_a_file_of_names(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"conv": "backbone_conv"}))
    assert read_renaming(str(path)) == {"conv": "backbone_conv"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ('["conv"]', "must be a mapping"),
        ('{"a": "b", "a": "c"}', "'a' twice"),
    ],
)
def test_rejects_files_that_are_no_renaming(tmp_path, text, message):
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=message):
        read_renaming(str(path))


def test_rejects_other_text():
    with pytest.raises(PolicyError, match=r"prefix=TEXT.*'backbone_'"):
        read_renaming("backbone_")


@pytest.mark.parametrize("renaming", [{"a": "x" * 1001}, {"x" * 1001: "a"}, {"a": 1}])
def test_rejects_names_that_are_no_layer_names(tmp_path, renaming):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(renaming))
    with pytest.raises(PolicyError, match="1 to 1000 characters"):
        read_renaming(str(path))


def test_a_name_too_long_for_a_file_is_no_file():
    with pytest.raises(PolicyError, match="prefix=TEXT") as error:
        read_renaming("x" * 100_000)
    assert len(str(error.value)) < 1000
