"""Channels that nobody needs are removed, and the budgets are those of what is left."""

import json
import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl

from gmpq_tf.cost import count_cost
from gmpq_tf.graph import GraphError
from gmpq_tf.layers.channel_gates import ChannelGates
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.search import PolicySearch, StrategyError, policies, search_policy
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.float_pass import FloatPass
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.gates import GatesConfig, kept_channels, trained_model
from gmpq_tf.space import SearchSpace
from gmpq_tf.transform import (
    build_hypernet,
    calibrate,
    prune_channels,
    quantize_model,
)

NEEDED = (True, True, True, False, False, False)
QUICK = {
    "epochs": 20,
    "information": 0.1,
    "learning_rate": 1e-3,
    "importance_learning_rate": 0.1,
    "calibration_images": 64,
    "progress": "none",
}


def residual_toy():
    """A residual group of six channels, of which the classifier reads three."""
    rng = np.random.default_rng(3)
    inputs = keras.Input((6, 6, 3), name="image")
    x = kl.Conv2D(6, 3, padding="same", activation="relu", name="first")(inputs)
    y = kl.Conv2D(6, 1, use_bias=False, name="second")(x)
    x = kl.ReLU(name="relu")(kl.Add(name="add")([x, y]))
    x = kl.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, kl.Dense(4, name="classifier")(x), name="group")
    mixing = rng.normal(size=(1, 1, 6, 6)) * 0.3
    mixing[:, :, 3:] = 0  # the others are read by nobody
    model.get_layer("second").set_weights([mixing])
    features = keras.Model(inputs, x)(images())
    weights = 4 * rng.normal(size=(6, 4)) / np.std(features, axis=0)[:, None]
    weights[3:] = 0
    bias = -np.mean(features, axis=0) @ weights
    model.get_layer("classifier").set_weights([weights, bias])
    return model


def images(count=64):
    rng = np.random.default_rng(4)
    scales = rng.uniform(0.2, 1.5, (count, 1, 1, 3))
    return (rng.normal(size=(count, 6, 6, 3)) * scales).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return residual_toy()


@pytest.fixture(scope="module")
def batches(model):
    labels = np.argmax(model(images()), axis=-1)
    return [(images()[i : i + 16], labels[i : i + 16]) for i in range(0, 64, 16)]


@pytest.fixture(scope="module")
def result(model, batches):
    return search_policy(model, batches, "djpq", budget="W4A4", **QUICK)


def test_channels_that_nobody_needs_are_removed(model, result):
    assert result.kept == {"first": NEEDED, "second": NEEDED}
    assert result.policy.channels == {"first": 3, "second": 3}
    small = prune_channels(model, result.kept)
    # They were read by nobody, so that nothing changes.
    np.testing.assert_allclose(small(images()), model(images()), rtol=1e-4, atol=1e-4)
    # What the search trained decides as the model did.
    assert result.pruned.count_params() == small.count_params()
    right = np.argmax(result.pruned(images()), -1) == np.argmax(model(images()), -1)
    assert right.mean() > 0.8
    # The budget is of the whole model; what pruning saves is spent on bits.
    allowed = count_cost(model, BitwidthPolicy.uniform(model, 4, 4)).bit_ops
    assert count_cost(small, result.policy).bit_ops <= allowed
    json.dumps(result.to_json(), allow_nan=False)
    assert result.to_json()["kept"]["first"] == [0, 1, 2]
    assert quantize_model(small, result.policy).count_params() > 0


def test_its_policy_is_of_no_other_model(model, result, tmp_path):
    for use in (count_cost, quantize_model):
        with pytest.raises(PolicyError, match="'first' has 3 channels, and a model in"):
            use(model, result.policy)
    path = tmp_path / "policy.json"
    result.policy.save(path)
    assert json.loads(path.read_text())["format"] == 2  # which older releases refuse
    loaded = BitwidthPolicy.load(path)
    assert loaded == result.policy
    assert loaded.channels == result.policy.channels == {"first": 3, "second": 3}
    renamed = loaded.rename("net_")
    assert dict(renamed.channels) == {"net_first": 3, "net_second": 3}
    content = json.loads(path.read_text())
    for wrong in ({"first": 0}, {"other": 3}, {"first": 2.5}, [3]):
        made_by = content["made_by"] | {"channels": wrong}
        path.write_text(json.dumps(content | {"made_by": made_by}))
        with pytest.raises(PolicyError, match="channels"):
            BitwidthPolicy.load(path)
    path.write_text(json.dumps(content | {"format": 1}))
    with pytest.raises(PolicyError, match="Received: format=1"):
        BitwidthPolicy.load(path)
    both = loaded.merge(BitwidthPolicy("other", {"more": (4, 4)}))
    assert dict(both.channels) == {"first": 3, "second": 3}


def test_what_it_cannot_do_is_said_first(model, batches):
    def run(**options):
        return search_policy(model, batches, "djpq", **{"budget": "W4A4"} | options)

    with pytest.raises(GraphError, match="'first': it is one of whole_layers"):
        run(whole_layers=("first",), **QUICK)
    with pytest.raises(GraphError, match="Did you mean 'first'"):
        run(whole_layers=("frist",), **QUICK)
    for name, value in (("information", -1), ("channel_multiple", 0)):
        with pytest.raises(ValueError, match=f"{name}="):
            run(**{name: value})
    with pytest.raises(StrategyError, match="gate_start=0"):
        run(gate_start=0)
    with pytest.raises(ValueError, match="no budget"):
        run(budget=None, **QUICK)


def test_a_layer_keeps_one_and_multiples():
    gates = ChannelGates({"a": range(10), "b": [-1, -1]}, {"b": range(10)})
    gates.mean.assign(np.linspace(0.01, 0.1, 10))
    gates.log_variance.assign(np.zeros(10))
    best = (False,) * 9 + (True,)
    assert kept_channels(gates) == {"a": best}  # of none the surest
    gates.log_variance.assign([-1] * 3 + [0] * 7)
    assert sum(kept_channels(gates)["a"]) == 3
    kept = kept_channels(gates, 8)["a"]
    assert kept == (True,) * 3 + (False,) * 2 + (True,) * 5
    assert kept_channels(gates, 16) == {}  # there are but ten


def test_gates_compute_what_they_say():
    keras.utils.set_random_seed(1)
    gates = ChannelGates({"a": range(2)}, {"b": [0, 1]}, start=-2.0)
    gates.mean.assign([2.0, 0.5])
    x = np.ones((2000, 3, 4), "float32")
    noisy = np.asarray(gates(x, places=(1, -1, 0, 1), training=True))
    assert (noisy[:, 0] == noisy[:, 2]).all() and (noisy[..., 1] == 1).all()
    assert (noisy[..., 0] == noisy[..., 3]).all()
    sigma = np.exp(-1.0)
    for place, mean in ((0, 0.5), (2, 2.0)):
        assert noisy[:, 0, place].mean() == pytest.approx(mean, abs=0.05)
        assert noisy[:, 0, place].std() == pytest.approx(sigma, rel=0.06)
    ratios = 2 * np.log(sigma / np.array([2.0, 0.5]))
    np.testing.assert_allclose(gates.log_ratios(), ratios, rtol=1e-5)
    told = np.log1p(np.array([4.0, 0.25]) / sigma**2)
    np.testing.assert_allclose(gates.information(), told, rtol=1e-5)
    gates.mean.assign([2.0, 0.1])
    still = np.asarray(gates(x, places=(1, -1, 0, 1)))
    np.testing.assert_array_equal(still[0, 0], [0, 1, 2, 0])
    assert float(gates.shares()["a"]) == 0.5
    again = np.asarray(gates(x, places=(1, -1, 0, 1), training=True))
    assert (again[:, 0, 2] != noisy[:, 0, 2]).any()


def test_expected_costs_count_open_channels(model):
    """Exactly what the pruned model costs."""
    formulation = Formulation("excess", gates=GatesConfig())
    space = SearchSpace((4,), (4,), {})
    search = PolicySearch(
        model,
        space,
        eta=0.0,
        budget={"bit_ops": "W4A4", "weight_bytes": "1kB"},
        relaxation="learned_grid",
        formulation=formulation,
    )
    gates = search.branches.gates[0]
    policy = BitwidthPolicy.uniform(model, 4, 4, pinned={})
    whole = count_cost(model, policy)
    assert float(search.expected_bit_ops()) == pytest.approx(whole.bit_ops, rel=1e-5)
    gates.log_variance.assign([0.5, -0.9, -0.9, 0.1, -0.9, -0.9])
    kept = search.kept_channels()
    assert sum(kept["first"]) == 4 and kept["first"] == kept["second"]
    small = count_cost(prune_channels(model, kept), policy)
    assert float(search.expected_bit_ops()) == pytest.approx(small.bit_ops, rel=1e-5)
    table = search.limits[1].table
    layers = sum(layer.weight_bytes for layer in small.layers)
    expected = float(search.expected_cost(table)) - table.constant
    assert expected == pytest.approx(layers, rel=1e-5)
    again = PolicySearch.from_config(search.get_config())
    assert again.formulation == formulation and len(again.branches.gates) == 1


@pytest.mark.slow
def test_measured_and_compared_where_channels_are_removed(model, batches, tmp_path):
    """Tables and finalists keep the budget of the pruned model, also when resumed."""
    options = QUICK | {"readout": "perturbation", "information": 0.2}
    options |= {"finalists": 3, "finalist_steps": 1, "finalist_batch_size": 16}
    options["finalist_images"] = 32
    whole = tmp_path / "journal.jsonl"
    first = search_policy(
        model, batches, "djpq", budget="W3A3", journal=whole, **options
    )
    assert first.kept["first"] == NEEDED and first.finalists
    small = prune_channels(model, first.kept)
    allowed = count_cost(model, BitwidthPolicy.uniform(model, 3, 3)).bit_ops
    for bits, _ in first.finalists:
        policy = BitwidthPolicy("group", bits, {"channels": {"first": 3}})
        assert count_cost(small, policy).bit_ops <= allowed
    lines = whole.read_bytes().splitlines(keepends=True)
    whole.write_bytes(b"".join(lines[: len(lines) // 2]))
    again = search_policy(
        model, batches, "djpq", budget="W3A3", journal=whole, **options
    )
    assert json.dumps(again.to_json()) == json.dumps(first.to_json())
    assert again.policy.channels == first.policy.channels


def test_the_trained_model_has_the_means_in_its_kernels(model):
    """What the hypernet computes with open gates and many bits."""
    keras.utils.set_random_seed(0)
    space = SearchSpace((2, 8), (2, 8), {})
    hypernet = build_hypernet(model, space, relaxation="learned_grid", gate_start=-9.0)
    gates = hypernet.get_layer("channel_gates")
    gates.mean.assign([0.5, 1.5, 0.9, 2.0, 0.7, 1.1])
    calibrate(hypernet, [images()])
    for each in hypernet.layers:
        if hasattr(each, "kernel_branches"):
            each.kernel_branches.choose(1)
            each.input_branches.choose(1)
    found = trained_model(model, hypernet)(images())
    wanted = np.asarray(hypernet(images()))
    far = np.abs(np.asarray(found) - wanted).max()
    assert far < 0.05 * np.abs(wanted).max()
    assert far < 0.2 * np.abs(wanted - np.asarray(model(images()))).max()


def variants():
    """Networks where channels go different ways: name -> (model, layers kept whole)."""

    def conv(x, filters, name, **options):
        return kl.Conv2D(filters, 3, padding="same", name=name, **options)(x)

    inputs = keras.Input((6, 6, 3))
    a, b = conv(inputs, 4, "a", activation="relu"), conv(inputs, 3, "b")
    joined = kl.Concatenate()([kl.BatchNormalization()(a), b])
    joined = kl.GlobalAveragePooling2D()(conv(joined, 5, "after"))
    found = {"concat": (keras.Model(inputs, kl.Dense(2, name="head")(joined)), ())}

    inputs = keras.Input((6, 6, 3))
    x = kl.ReLU(6.0)(kl.BatchNormalization()(conv(inputs, 6, "wide")))
    x = kl.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = kl.ReLU()(kl.BatchNormalization()(x))
    x = kl.Conv2D(4, 1, name="narrow")(x)
    x = kl.MaxPooling2D()(x)
    x = kl.Dense(5, activation="relu", name="hidden")(kl.Flatten()(x))
    found["depthwise"] = (keras.Model(inputs, kl.Dense(2, name="head")(x)), ())

    inputs = keras.Input((6, 6, 3))
    x = conv(inputs, 4, "seen", activation="relu")
    y = conv(x, 4, "after")
    outputs = [x, kl.Dense(2, name="head")(kl.GlobalAveragePooling2D()(y))]
    found["output"] = (keras.Model(inputs, outputs), ("seen",))

    inputs = keras.Input((6, 6, 3))
    shared = kl.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    x = shared(shared(conv(inputs, 4, "before")))
    x = kl.GlobalAveragePooling2D()(x)
    found["shared"] = (keras.Model(inputs, kl.Dense(2, name="head")(x)), ())

    inputs = keras.Input((6, 6, 3))
    x = conv(inputs, 4, "before")
    x = conv(x, 4, "grouped", groups=2, activation="relu")
    x = kl.GlobalAveragePooling2D()(conv(x, 4, "after"))
    found["grouped"] = (
        keras.Model(inputs, kl.Dense(2, name="head")(x)),
        ("before", "grouped"),
    )
    return found


@pytest.mark.parametrize("name", ["concat", "depthwise", "output", "shared", "grouped"])
def test_closed_channels_are_what_is_removed(name):
    """The pruned network computes what gates at 0 leave, and costs what they count."""
    model, whole = variants()[name]
    rng = np.random.default_rng(7)
    for variable in model.variables:
        least = 0.5 if "variance" in variable.path else -0.5
        variable.assign(rng.uniform(least, 1.0, variable.shape))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        hypernet = build_hypernet(model, relaxation="learned_grid", gate_start=-9.0)
    text = " ".join(str(each.message) for each in said if "keep all" in str(each))
    # What an output shows is no surprise; the others are named.
    named = [each for each in whole if name != "output"]
    assert all(f"'{each}': " in text for each in named) and bool(text) == bool(named)
    gates = hypernet.get_layer("channel_gates")
    gates.mean.assign(rng.uniform(0.5, 1.5, gates.count))
    gates.log_variance.assign(np.where(np.arange(gates.count) % 3 == 1, 1.0, -1.0))
    kept = kept_channels(gates)
    assert kept and not set(kept) & {*whole, "head"}
    images = rng.normal(size=(4, 6, 6, 3)).astype("float32")
    wanted, _ = FloatPass(hypernet, ())([images])
    small = prune_channels(trained_model(model, hypernet), kept)
    for one, other in zip(keras.tree.flatten(small(images)), wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    shares = gates.shares()
    before = {each.name: each.macs for each in count_cost(model).layers}
    for each in count_cost(small).layers:
        assert before[each.name] * float(shares[each.name]) == pytest.approx(each.macs)
    assert count_cost(small).macs < count_cost(model).macs


def test_statistics_are_measured_without_the_noise_of_gates(monkeypatch):
    """A closed gate is as one whose mean is 0."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 3))
    x = kl.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = kl.BatchNormalization(name="norm")(kl.Conv2D(4, 1, name="second")(x))
    x = kl.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, kl.Dense(2, name="head")(x))
    cases = []
    monkeypatch.setattr(policies, "search_case", lambda case, *_: cases.append(case))
    search_policy(model, images(), "loss_delta", progress="none")
    found = []
    for mean, variance in ((0.0, -9.0), (1.0, 0.5)):
        hypernet = build_hypernet(model, gate_start=-9.0)
        calibrate(hypernet, [images()])
        gates = hypernet.get_layer("channel_gates")
        gates.mean.assign([mean, 1, 1, 1, 1, 1, 1, 1])
        gates.log_variance.assign([variance, *[-9.0] * 7])
        evaluator = Evaluator(
            cases[0], 32, statistics=32, trained=lambda own=hypernet: own
        )
        bits = {n: (w[-1], a[-1]) for n, (w, a) in cases[0].problem.candidates.items()}
        cases[0].journal._answers.clear()
        found.append(evaluator.measure(bits).divergence)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)
