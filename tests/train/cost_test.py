import csv
import io
import json
import subprocess
import sys

import keras
import pytest
from absl import flags

from gmpq_tf.budget import BudgetError
from gmpq_tf.cost_tables import COST_TABLES
from gmpq_tf.models import ModelFileError
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.run.flags import define_flags
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.cost import COLUMNS, CostConfig, describe_cost, main

LAYERS = {"first": (8, 8), "middle": (3, 4), "last": (2, 5)}
# tests/train/conftest.py's model by hand: positions, kernel, inputs of each layer.
FIRST = (36, 9 * 1 * 4, 64)
MIDDLE = (16, 9 * 4 * 6, 36 * 4)
LAST = (1, 6 * 10, 6)
OTHER = 4 + 4 * 6 + 10  # biases and the batch normalization


def expected_rows(bits):
    for (name, (w, a)), (positions, kernel, inputs) in zip(
        bits.items(), (FIRST, MIDDLE, LAST), strict=True
    ):
        macs = positions * kernel
        packed, read = -(-w * kernel // 8), -(-a * inputs // 8)
        yield [name, w, a, macs, kernel, inputs, macs * w * a, packed, read]


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "policy.json"
    BitwidthPolicy("small", LAYERS, {"strategy": "gmpq"}).save(path)
    return str(path)


def as_csv(**config):
    text = describe_cost(CostConfig(format="csv", **config))
    return list(csv.DictReader(io.StringIO(text)))


def as_json(**config):
    return json.loads(describe_cost(CostConfig(format="json", **config)))


def test_csv_has_the_raw_counts_of_every_layer(float_file, policy_file):
    rows = as_csv(model=str(float_file), policy=policy_file)
    assert tuple(rows[0]) == tuple(COLUMNS)
    layers = [row for row in rows if row["kind"] == "layer"]
    columns = COLUMNS[1:10]
    found = [[row[column] for column in columns] for row in layers]
    assert found == [list(map(str, row)) for row in expected_rows(LAYERS)]
    other, total = rows[-2:]
    assert (other["kind"], other["params"]) == ("other", str(OTHER))
    assert other["weight_bytes"] == str(4 * OTHER) and other["macs"] == ""
    assert total["kind"] == "total"
    for column in ("macs", "params", "bit_ops", "weight_bytes", "activation_bytes"):
        parts = sum(int(row[column] or 0) for row in rows[:-1])
        assert int(total[column]) == parts
    shares = [float(row["weight_bytes_share"]) for row in rows[:-1]]
    assert sum(shares) == pytest.approx(1)


def test_json_says_the_same(float_file, policy_file):
    content = as_json(model=str(float_file), policy=policy_file)
    assert content["model"] == "small" and content["made_by"] == {"strategy": "gmpq"}
    assert content["input_shapes"] == [[None, 8, 8, 1]]
    columns = COLUMNS[1:10]
    found = [[row[column] for column in columns] for row in content["layers"]]
    assert found == list(expected_rows(LAYERS))
    assert content["other"]["weight_bytes"] == 4 * OTHER
    assert content["total"]["bit_ops"] == sum(row[6] for row in expected_rows(LAYERS))
    assert content["total"]["bit_ops_share"] == 1.0 and "comparison" not in content


def test_without_a_policy_everything_has_32_bits(float_file):
    content = as_json(model=str(float_file))
    assert content["made_by"] is None
    assert {row["weight_bits"] for row in content["layers"]} == {32}
    kernels = FIRST[1] + MIDDLE[1] + LAST[1]
    assert content["total"]["weight_bytes"] == 4 * (kernels + OTHER)


def test_table_has_human_units_and_a_total(float_file):
    text = describe_cost(CostConfig(str(float_file), policy="uniform:3,3"))
    header, _, first, middle, _, other, total = text.splitlines()
    assert header.split() == "layer W A MACs BOPs share weights share inputs".split()
    # 16 * 216 MACs at 9, beside 1296 and 60 at 64.
    assert middle.split()[:9] == "middle 3 3 3.46 k 31.10 k 26.38 %".split()
    assert first.split()[3:7] == "1.30 k 82.94 k".split()
    assert other.split()[:3] == ["other", "152", "B"]
    assert total.split()[:5] == "total 4.81 k 117.89 k".split()


def test_a_built_in_model_needs_size_and_classes():
    sizes = {"model": "resnet8", "image_size": 32, "num_classes": 10}
    assert as_json(**sizes)["total"]["macs"] == 12_501_632
    grey = as_json(**sizes, channels=1)["layers"][0]
    assert grey["params"] == 9 * 16
    with pytest.raises(ValueError, match=r"resnet8.*num_classes"):
        as_json(model="resnet8", image_size=32)


def test_a_file_that_leaves_its_size_open_is_given_one(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    keras.Model(inputs, x).save(tmp_path / "open.keras")
    path = str(tmp_path / "open.keras")
    assert as_json(model=path, image_size=5)["total"]["macs"] == 25 * 9 * 3 * 4
    with pytest.raises(ValueError, match="fixed input size"):
        as_json(model=path)


def test_a_file_of_another_size_or_with_classes_is_refused(float_file):
    path = str(float_file)
    assert as_json(model=path, image_size=8) == as_json(model=path)
    with pytest.raises(ValueError, match=r"image_size=9.*8, 8, 1"):
        as_json(model=path, image_size=9)
    with pytest.raises(ValueError, match="num_classes=10"):
        as_json(model=path, num_classes=10)


def test_layers_are_renamed_where_the_model_calls_them_otherwise(
    float_file, policy_file, tmp_path
):
    model, path = str(float_file), str(tmp_path / "there.json")
    BitwidthPolicy.load(policy_file).rename({"middle": "center"}).save(path)
    names = tmp_path / "names.json"
    names.write_text('{"center": "middle"}')
    with pytest.raises(PolicyError, match=r"2 layers match the model's 3.*rename"):
        as_json(model=model, policy=path)
    found = as_json(model=model, policy=path, rename_layers=str(names))
    expected = as_json(model=model, policy=policy_file)
    assert found["layers"] == expected["layers"]


def test_compare_says_what_differs(float_file, policy_file):
    flags_ = {"model": str(float_file), "policy": policy_file}
    text = describe_cost(CostConfig(**flags_, compare="uniform:3,2"))
    assert "2 of 3 shared layers differ" in text
    assert "middle            3           4 -> 2" in text
    # Weights 8, 3, 2 against 8, 3, 8: ranks 3, 2, 1 and 2.5, 1, 2.5.
    assert "over 3 shared layers: weight bits 0.000" in text
    comparison = as_json(**flags_, compare="uniform:8,8")["comparison"]
    assert comparison["changed"]["middle"] == [
        {"weight_bits": 3, "activation_bits": 4},
        {"weight_bits": 8, "activation_bits": 8},
    ]
    correlation = {"layers": 3, "weight_bits": None, "activation_bits": None}
    assert comparison["rank_correlation"] == correlation


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "A model must be given"),
        ({"model": "m.keras", "compare": "uniform:3,3"}, "need a policy"),
        ({"model": "m.keras", "rename_layers": "prefix=a_"}, "need a policy"),
        (
            {"model": "m", "policy": "p", "compare": "q", "format": "csv"},
            "format=json",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        CostConfig(**config)


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(ModelFileError, match="resnet18"):
        as_json(model="resnet_18", image_size=32)


def test_output_goes_to_a_file(float_file, tmp_path, monkeypatch, capsys):
    path = tmp_path / "new" / "cost.csv"
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    define_flags(CostConfig)
    arguments = [f"--model={float_file}", "--format=csv", f"--output={path}"]
    flags.FLAGS(["program", *arguments])
    main(["program"])
    config = CostConfig(str(float_file), format="csv")
    assert path.read_text() == describe_cost(config)
    assert capsys.readouterr().out == f"Costs: {path}\n"


@pytest.mark.slow
def test_stdout_holds_the_costs_alone(repo_root, float_file):
    done = subprocess.run(
        [sys.executable, "-m", "train.cost", f"--model={float_file}", "--format=json"],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"]["macs"] == 36 * 36 + 16 * 216 + 60


def test_resources_are_what_a_search_can_limit(float_file):
    content = as_json(model=str(float_file), resources=True, policy="uniform:3,3")
    rows = {row["resource"]: row for row in content["resources"]}
    assert list(rows) == list(COST_TABLES)
    kernels = [position * kernel for position, kernel, _ in (FIRST, MIDDLE, LAST)]
    pinned = 64 * (kernels[0] + kernels[2])
    operations = rows["bit_ops"]
    assert operations["lowest"] == pinned + 4 * kernels[1]
    assert operations["highest"] == pinned + 16 * kernels[1]
    assert operations["float"] == 1024 * sum(kernels)
    assert operations["policy"] == pinned + 9 * kernels[1]
    assert rows["file_bytes"]["lowest"] <= rows["file_bytes"]["policy"]
    assert rows["activation_bytes"]["lowest"] == rows["activation_bytes"]["highest"]
    assert "gmpq-latency" in rows["latency_ms"]["missing"]
    assert content["budgets"] == [] and content["together"] is None


@pytest.mark.slow
def test_budgets_are_placed_in_what_the_space_reaches(float_file):
    options = {"weight_bits": (2, 8), "activation_bits": (4,)}
    model, space = str(float_file), SearchSpace(**options)
    kernel = MIDDLE[1]
    least = FIRST[1] + LAST[1] + 4 * OTHER + kernel // 4
    half = least + 3 * kernel / 8

    def found(budget):
        return as_json(model=model, budget=budget, space=space)["budgets"]

    (row,) = found(f"weight_bytes={half}B")
    assert (row["reachable"], row["limit"]) == (True, half)
    assert row["place"] == pytest.approx(0.5)
    low, high = found(f"weight_bytes={least - 1}B,1MB")
    assert not low["reachable"] and low["place"] < 0
    assert (high["resource"], high["reachable"]) == ("file_bytes", True)
    text = describe_cost(CostConfig(model, budget="weight_bytes=1B,W8A4", space=space))
    assert "weight_bytes=1B: weight_bytes of at most 1 B: not reachable, the" in text
    assert "W8A4: bit_ops of at most" in text and "every policy keeps it." in text
    for wrong in ("60kb", "2.5ms", "weight_byte=3kB"):
        with pytest.raises(BudgetError, match=r"60kB|gmpq-latency|weight_bytes"):
            as_json(model=model, budget=wrong)
    with pytest.raises(ValueError, match="CSV has no place"):
        as_csv(model=model, budget="W4A4")
