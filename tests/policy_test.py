import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from gmpq_tf.policy import BitwidthPolicy, LayerBits, PolicyError, check_pinned

LAYERS = {"conv1": (8, 8), "conv2": (3, 4), "head": (2, 5)}
GOOD = {
    "format": 1,
    "model": "net",
    "layers": {"conv1": {"weight_bits": 4, "activation_bits": 3}},
    "made_by": {"strategy": "gmpq", "seed": 7},
}


def small_model():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv1")(inputs)
    x = keras.layers.DepthwiseConv2D(3, name="conv2")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name="net")


def load_text(tmp_path, text):
    path = tmp_path / "policy.json"
    path.write_text(text, encoding="utf-8")
    return BitwidthPolicy.load(path)


def test_is_a_mapping_of_layer_bits():
    policy = BitwidthPolicy("net", LAYERS)
    assert policy["conv2"] == LayerBits(weight_bits=3, activation_bits=4)
    assert list(policy) == list(LAYERS)
    assert len(policy) == 3
    assert "conv9" not in policy and policy.get("conv9") is None
    assert {n: (b.weight_bits, b.activation_bits) for n, b in policy.items()} == LAYERS


def test_unknown_layer_names_the_nearest():
    with pytest.raises(KeyError, match="Did you mean 'conv2'"):
        BitwidthPolicy("net", LAYERS)["conv_2"]


def test_equality_is_of_the_bits_not_of_the_maker():
    policy = BitwidthPolicy("net", LAYERS, {"seed": 1})
    same = BitwidthPolicy("net", dict(reversed(LAYERS.items())), {"seed": 2})
    assert policy == same and hash(policy) == hash(same)
    assert policy != BitwidthPolicy("net", LAYERS | {"head": (3, 5)})
    assert policy != BitwidthPolicy("other", LAYERS)
    assert "conv2: W3/A4" in repr(policy)


def test_cannot_be_changed():
    policy = BitwidthPolicy("net", LAYERS)
    with pytest.raises(AttributeError):
        policy.model = "other"
    with pytest.raises(TypeError):
        policy["conv1"] = (2, 2)


@pytest.mark.parametrize("bits", [1, 9, 0, -2, 3.0, True, "4", None])
def test_rejects_other_bits(bits):
    with pytest.raises(PolicyError, match=r"conv1\.weight_bits"):
        BitwidthPolicy("net", {"conv1": (bits, 4)})
    with pytest.raises(PolicyError, match="Received: activation_bits"):
        LayerBits(4, bits)


@pytest.mark.parametrize(
    ("model", "layers", "made_by"),
    [
        ("", LAYERS, {}),
        (None, LAYERS, {}),
        ("net", {}, {}),
        ("net", [("conv1", (2, 2))], {}),
        ("net", {"conv1": 4}, {}),
        ("net", {"conv1": (2, 2, 2)}, {}),
        ("net", {1: (2, 2)}, {}),
        ("net", LAYERS, {"loss": float("nan")}),
        ("net", LAYERS, {"config": object()}),
        ("net", LAYERS, "gmpq"),
    ],
)
def test_rejects_other_types(model, layers, made_by):
    with pytest.raises(PolicyError, match="Received: "):
        BitwidthPolicy(model, layers, made_by)


def test_accepts_numpy_integers():
    bits = BitwidthPolicy("net", {"conv1": tuple(np.array([2, 3]))})["conv1"]
    assert type(bits.weight_bits) is int and bits == LayerBits(2, 3)


def test_file_is_the_documented_json(tmp_path):
    path = tmp_path / "new" / "policy.json"
    BitwidthPolicy("net", {"conv1": (4, 3)}, GOOD["made_by"]).save(path)
    assert json.loads(path.read_text()) == GOOD
    assert [file.name for file in path.parent.iterdir()] == ["policy.json"]


def test_save_and_load_round_trip(tmp_path):
    made_by = {"strategy": "gmpq", "config": {"bits": (2, 3)}, "seed": 1}
    policy = BitwidthPolicy("net ü", LAYERS, made_by)
    policy.save(tmp_path / "policy.json")
    loaded = BitwidthPolicy.load(tmp_path / "policy.json")
    assert loaded == policy
    assert loaded.made_by == policy.made_by
    assert list(loaded) == list(policy)


def changed(**changes):
    return json.dumps(GOOD | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "must be a mapping"),
        ("null", "must be a mapping"),
        (changed(format=2), "format=2"),
        (changed(format=True), "format=True"),
        (changed(format=1.0), "format=1.0"),
        (changed(format="1"), "format='1'"),
        (changed(model=3), "model=3"),
        (changed(layers=[]), "layers="),
        (changed(layers={}), "layers="),
        (changed(layer={}), "unknown=.*Did you mean 'layers'"),
        (changed(made_by=None), "made_by="),
        (changed(layers={"a": 4}), "layer 'a'"),
        (changed(layers={"a": {"weight_bits": 4}}), "missing=.*activation_bits"),
        (changed(layers={"a": {"weight_bits": 4, "bits": 4}}), "unknown=.*'bits'"),
        (changed(layers={"a": {"weight_bits": 9, "activation_bits": 4}}), "=9"),
        (changed(layers={"a": {"weight_bits": 4.0, "activation_bits": 4}}), "=4.0"),
        (changed(layers={"a": {"weight_bits": True, "activation_bits": 4}}), "=True"),
        (changed(layers={"a": {"weight_bits": "4", "activation_bits": 4}}), "='4'"),
        (changed()[:-1] + ', "model": "net"}', "'model' twice"),
        (changed().replace('"seed": 7', '"seed": NaN'), "made_by"),
    ],
)
def test_load_rejects(tmp_path, text, message):
    with pytest.raises(PolicyError, match=message) as caught:
        load_text(tmp_path, text)
    assert "policy.json" in str(caught.value)


@pytest.mark.parametrize("key", list(GOOD))
def test_load_rejects_missing_keys(tmp_path, key):
    content = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(PolicyError, match=f"missing=.*{key}"):
        load_text(tmp_path, json.dumps(content))


def test_load_rejects_a_layer_twice(tmp_path):
    layer = '"a": {"weight_bits": 4, "activation_bits": 4}'
    text = f'{{"format": 1, "model": "n", "layers": {{{layer}, {layer}}}}}'
    with pytest.raises(PolicyError, match="'a' twice"):
        load_text(tmp_path, text)


def test_load_rejects_bytes_and_large_files(tmp_path):
    path = tmp_path / "policy.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="must be JSON"):
        BitwidthPolicy.load(path)
    path.write_text(changed() + " " * 10_000_000)
    with pytest.raises(PolicyError, match="10000000 bytes"):
        BitwidthPolicy.load(path)


def test_load_of_no_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        BitwidthPolicy.load(tmp_path / "none.json")


def test_uniform_pins_first_and_last():
    policy = BitwidthPolicy.uniform(small_model(), 3, 4)
    expected = {"conv1": (8, 8), "conv2": (3, 4), "head": (8, 8)}
    assert policy == BitwidthPolicy("net", expected)
    assert policy.made_by["strategy"] == "uniform"


def test_uniform_with_other_pins():
    model = small_model()
    everywhere = BitwidthPolicy.uniform(model, 2, 2, pinned={})
    assert set(everywhere.values()) == {LayerBits(2, 2)}
    one = BitwidthPolicy.uniform(model, 2, 2, pinned={"conv2": (5, 6)})
    assert one["conv2"] == LayerBits(5, 6) and one["head"] == LayerBits(2, 2)
    with pytest.raises(PolicyError, match="Did you mean 'conv2'"):
        BitwidthPolicy.uniform(model, 2, 2, pinned={"conv_2": (5, 6)})


def test_check_pinned_of_one_layer():
    assert check_pinned(["only"], None) == {"only": (8, 8)}


def test_check_names_what_does_not_fit():
    policy = BitwidthPolicy("net", LAYERS)
    policy.check(["head", "conv2", "conv1"])
    with pytest.raises(PolicyError, match=r"missing=\['conv3'\].*'conv"):
        policy.check([*LAYERS, "conv3"])
    with pytest.raises(PolicyError, match=r"unknown=\['head'\].*mean 'heads'"):
        policy.check(["conv1", "conv2", "heads"])


def test_policy_cost_and_space_need_no_tensorflow(repo_root, tmp_path):
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["tensorflow", "keras", "tf_keras"]))
from gmpq_tf import cost, files, graph, policy, space
policy.BitwidthPolicy("net", {LAYERS!r}).save("policy.json")
assert len(policy.BitwidthPolicy.load("policy.json")) == 3
assert cost.bit_ops(10, 2, 3) == 60
assert space.SearchSpace().candidates(["a"]) == {{"a": ((8,), (8,))}}
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(repo_root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
