import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.budget import BudgetError
from gmpq_tf.cost import count_cost
from gmpq_tf.graph import searchable_names
from gmpq_tf.models import build_model
from gmpq_tf.policy import BitwidthPolicy, LayerBits, PolicyError
from gmpq_tf.space import SearchSpace

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


def test_check_names_what_does_not_fit():
    policy = BitwidthPolicy("net", LAYERS)
    policy.check(["head", "conv2", "conv1"])
    with pytest.raises(PolicyError, match=r"3 layers match the model's 4.*'conv"):
        policy.check([*LAYERS, "conv3"])
    with pytest.raises(PolicyError, match=r"unknown=\['head'\].*mean 'heads'"):
        policy.check(["conv1", "conv2", "heads"])


def test_random_spends_its_budget_within_the_candidates():
    model = small_model()
    options = {"weight_bits": (6, 2, 5, 3), "activation_bits": (4, 5), "pinned": {}}
    policy = BitwidthPolicy.random(model, bit_ops_budget=0.02, seed=1, **options)
    spent = count_cost(model, policy).bit_ops / count_cost(model).bit_ops
    assert 0.97 * 0.02 <= spent <= 0.02
    assert {bits.weight_bits for bits in policy.values()} <= {2, 3, 5, 6}
    assert {bits.activation_bits for bits in policy.values()} <= {4, 5}
    assert policy == BitwidthPolicy.random(model, 0.02, 1, **options)
    space = SearchSpace((2, 3, 5, 6), (4, 5), {}).to_config()
    assert policy.made_by == {
        "strategy": "random",
        "config": {"space": space, "bit_ops_budget": 0.02},
        "seed": 1,
    }


def test_random_pins_the_ends_or_what_it_is_told():
    model = small_model()
    policy = BitwidthPolicy.random(model, 0.06, 0)
    assert policy["conv1"] == policy["head"] == LayerBits(8, 8)
    pinned = {"conv2": LayerBits(5, 6)}
    policy = BitwidthPolicy.random(model, 0.02, 0, pinned=pinned)
    assert policy["conv2"] == LayerBits(5, 6)
    assert policy.made_by["config"]["space"]["pinned"] == {"conv2": [5, 6]}


def test_random_refuses_what_cannot_be():
    model = small_model()
    with pytest.raises(BudgetError, match="reaches"):
        BitwidthPolicy.random(model, 1e-4, 0)
    with pytest.raises(PolicyError, match="weight_bits=1"):
        BitwidthPolicy.random(model, 0.02, 0, weight_bits=(1, 4))


def test_table_has_one_aligned_line_a_layer():
    policy = BitwidthPolicy("net", LAYERS)
    assert str(policy) == policy.table()
    assert str(policy).splitlines() == [
        "layer  weight bits  activation bits",
        "-----  -----------  ---------------",
        "conv1            8                8",
        "conv2            3                4",
        "head             2                5",
    ]


def test_merge_takes_the_bits_of_the_other():
    first = BitwidthPolicy("net", LAYERS, {"seed": 1})
    other = BitwidthPolicy("rest", {"head": (6, 6), "neck": (7, 7)}, {"seed": 2})
    merged = first.merge(other)
    layers = LAYERS | {"head": (6, 6), "neck": (7, 7)}
    assert merged == BitwidthPolicy("net", layers) and list(merged) == list(layers)
    assert merged.made_by["config"] == {"policy": {"seed": 1}, "other": {"seed": 2}}
    assert first == BitwidthPolicy("net", LAYERS)


def test_diff_and_rank_correlation_of_policies():
    first = BitwidthPolicy("net", LAYERS)
    other = BitwidthPolicy("rest", LAYERS | {"conv1": (7, 2)})
    assert first.diff(other).changed == {"conv1": (LayerBits(8, 8), LayerBits(7, 2))}
    assert not first.diff(first)
    found = first.rank_correlation(other)
    assert (found.layers, found.weight_bits) == (3, 1.0)
    # Ranks 3, 1, 2 against 1, 2, 3: 1 - 6 (4 + 1 + 1) / (3 * 8).
    assert found.activation_bits == pytest.approx(-0.5)


@pytest.mark.parametrize("method", ["merge", "diff", "rank_correlation"])
def test_methods_of_two_policies_refuse_other_things(method):
    with pytest.raises(PolicyError, match="must be a BitwidthPolicy"):
        getattr(BitwidthPolicy("net", LAYERS), method)(LAYERS)


def test_rename_keeps_bits_order_and_maker(tmp_path):
    policy = BitwidthPolicy("net", LAYERS, {"strategy": "gmpq"})
    renamed = policy.rename({"conv1": "conv2", "conv2": "conv1"})
    layers = {"conv2": (8, 8), "conv1": (3, 4), "head": (2, 5)}
    assert renamed == BitwidthPolicy("net", layers) and list(renamed) == list(layers)
    assert renamed.made_by["strategy"] == "gmpq"
    assert list(policy.rename("a_")) == ["a_conv1", "a_conv2", "a_head"]
    policy.rename("a_").save(tmp_path / "policy.json")
    loaded = BitwidthPolicy.load(tmp_path / "policy.json")
    assert loaded.made_by == {"strategy": "gmpq", "renamed": "a_"}
    with pytest.raises(PolicyError, match="Did you mean 'conv2'"):
        policy.rename({"conv_2": "x"})


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("resnet18", {}),
        ("mobilenet_v2", {}),
        ("mobilenet_v2", {"alpha": 0.35}),
    ],
)
def test_a_policy_travels_to_other_images_classes_and_widths(name, there, tmp_path):
    small = build_model(name, (32, 32, 3), 10)
    BitwidthPolicy.random(small, 0.011, 0).save(tmp_path / "policy.json")
    policy = BitwidthPolicy.load(tmp_path / "policy.json")
    large = build_model(name, (64, 64, 3), 100, **there)
    full = {layer.name: layer.macs for layer in count_cost(large).layers}
    expected = sum(
        full[n] * b.weight_bits * b.activation_bits for n, b in policy.items()
    )
    assert count_cost(large, policy).bit_ops == expected
    assert count_cost(large, policy).macs != count_cost(small, policy).macs


@pytest.mark.slow
def test_a_policy_found_at_32_pixels_quantizes_the_network_at_64():
    policy = BitwidthPolicy.random(build_model("resnet18", (32, 32, 3), 10), 0.011, 0)
    large = build_model("resnet18", (64, 64, 3), 100)
    renamed = keras.Model(large.inputs, large.outputs, name="another_name")
    student = gmpq.quantize_model(renamed, policy)
    layers = {layer.name: layer for layer in student.layers}
    for name, bits in policy.items():
        assert layers[name].kernel_quantizer.bits == (bits.weight_bits,)
        assert layers[name].input_quantizer.bits == (bits.activation_bits,)
    assert student.output_shape == (None, 100)


def two_inside():
    """A model that holds small_model's layers twice, the second under other names."""
    inner, twin = small_model(), small_model()
    twin.name = "twin"
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, keras.layers.Add()([inner(inputs), twin(inputs)]))


def test_a_nested_model_is_reached_by_renaming():
    model, policy = two_inside(), BitwidthPolicy("net", LAYERS)
    assert set(searchable_names(model)) == {*LAYERS, *(f"twin_{n}" for n in LAYERS)}
    with pytest.raises(PolicyError, match="3 layers match the model's 6"):
        gmpq.quantize_model(model, policy)
    both = policy.merge(policy.rename("twin_"))
    student = gmpq.quantize_model(model, both)
    layers = {layer.name: layer for layer in student.layers}
    for name, (weight_bits, activation_bits) in LAYERS.items():
        for place in (name, f"twin_{name}"):
            assert layers[place].kernel_quantizer.bits == (weight_bits,)
            assert layers[place].input_quantizer.bits == (activation_bits,)


def test_a_policy_for_another_network_is_refused_with_what_matches():
    policy = BitwidthPolicy.uniform(build_model("resnet8", (32, 32, 3), 10), 3, 3)
    other = build_model("resnet20", (32, 32, 3), 10)
    with pytest.raises(PolicyError, match=r"10 layers match the model's 22.*missing="):
        gmpq.quantize_model(other, policy)
    with pytest.raises(PolicyError, match=r"rename_layers=prefix=net_"):
        policy.check([f"net_{name}" for name in policy])


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


CHANGES = {
    "set": lambda layers: layers.__setitem__("conv1", (99, "x")),
    "delete": lambda layers: layers.__delitem__("conv1"),
    "update": lambda layers: layers.update(conv1=(2, 2)),
    "or": lambda layers: layers.__ior__({"conv1": (2, 2)}),
    "clear": lambda layers: layers.clear(),
    "pop": lambda layers: layers.pop("conv1"),
    "popitem": lambda layers: layers.popitem(),
    "default": lambda layers: layers.setdefault("new", (2, 2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_frozen_cannot_be_changed(change):
    policy = BitwidthPolicy("net", LAYERS, {"config": {"conv1": 1}})
    space = SearchSpace(pinned={"conv1": (8, 8)})
    before = hash(policy), hash(space)
    for mapping in (policy.layers, policy.made_by["config"], space.pinned):
        with pytest.raises(TypeError, match="stay as they were made"):
            change(mapping)
    assert (hash(policy), hash(space)) == before
    assert policy == BitwidthPolicy("net", LAYERS)


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda policy: pickle.loads(pickle.dumps(policy)),
        dataclasses.replace,
        lambda policy: BitwidthPolicy(**vars(policy)),
    ],
    ids=["copy", "deepcopy", "pickle", "replace", "fields"],
)
def test_a_copied_policy_is_the_same(copied):
    policy = BitwidthPolicy("net", LAYERS, {"config": {"bits": [2, 3]}, "seed": 1})
    other = copied(policy)
    assert other == policy and hash(other) == hash(policy)
    assert other.made_by == policy.made_by and list(other) == list(policy)


def test_a_policy_is_written_as_plain_values():
    policy = BitwidthPolicy("net", {"a": (4, 3)}, {"config": {"bits": [2]}})
    layer = {"weight_bits": 4, "activation_bits": 3}
    plain = {
        "model": "net",
        "layers": {"a": layer},
        "made_by": {"config": {"bits": [2]}},
    }
    assert json.loads(json.dumps(dataclasses.asdict(policy))) == plain
    changed = dict(policy.layers)
    changed["a"] = (2, 2)
    assert BitwidthPolicy("net", changed)["a"].weight_bits == 2
