"""Budgets from the search to the file on disk, as the commands take them."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from gmpq_tf.cost import count_cost
from gmpq_tf.cost_tables import TableOptions, cost_table
from gmpq_tf.export.command import ExportConfig, export
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search import RiskConfig
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.search import SearchConfig, search

ROOT = Path(__file__).resolve().parents[2]
SPACE = SearchSpace((2, 4, 8), (4, 8))
LAYERS = keras.layers


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory):
    """A model wide enough for kernels to be packed, with a residual connection."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    x = LAYERS.Conv2D(32, 3, padding="same", activation="relu", name="first")(x)
    y = LAYERS.Conv2D(32, 3, padding="same", use_bias=False, name="second")(x)
    y = LAYERS.BatchNormalization(name="norm")(y)
    x = LAYERS.ReLU(name="relu")(LAYERS.Add(name="add")([x, y]))
    x = LAYERS.Conv2D(40, 3, strides=2, activation="relu", name="third")(x)
    x = LAYERS.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, LAYERS.Dense(10, name="last")(x), name="wide")
    path = tmp_path_factory.mktemp("wide") / "wide.keras"
    model.save(path)
    return path


def middle(path, storage, share=0.4):
    """Bytes between the least and the most that the space reaches."""
    model = keras.models.load_model(path)
    table = cost_table("file_bytes", model, TableOptions(storage))
    low, high = table.range(SPACE.candidates(model))
    return int(low + share * (high - low))


def chain(path, data, run, budget, **export_options):
    """Search, fine-tuning and export; returns the policy and the file."""
    common = {"epochs": 1, "learning_rate": 0.01, "calibration_images": 64}
    risk = RiskConfig(eta=0.0, budget=budget)
    search(SearchConfig(**common, model=str(path), risk=risk, space=SPACE), data, run)
    stage = finetune(FinetuneConfig(**common, model=str(path)), data, run)
    # One epoch of a random model teaches nothing: what it decides is no matter here.
    options = {"verify_images": 0, "latency_runs": 0, "least_agreement": 0.0}
    file = export(ExportConfig(**options, **export_options), data, run)
    return BitwidthPolicy.load(stage.folder / "policy.json"), file


@pytest.mark.slow
def test_the_file_on_disk_keeps_a_budget_of_bytes(wide_file, digits, quiet, capsys):
    budget = middle(wide_file, "smallest")
    policy, file = chain(wide_file, digits, quiet, f"{budget / 1000}kB")
    size = file.stat().st_size
    assert 0.9 * budget < size <= budget
    report = json.loads((file.parent / "export_report.json").read_text())
    # Without a word about it the storage is that which the budget was about.
    assert report["storage"] == "smallest" and report["file_bytes"] == size
    assert "more than" not in capsys.readouterr().out
    (limit,) = policy.made_by["config"]["limits"]
    assert size <= limit["cost"] <= limit["limit"] == budget


@pytest.mark.slow
def test_all_of_several_budgets_are_kept_by_the_file(wide_file, digits, quiet):
    budget = middle(wide_file, "smallest", 0.6)
    policy, file = chain(wide_file, digits, quiet, f"W4A4, {budget}B")
    assert file.stat().st_size <= budget
    model = keras.models.load_model(wide_file)
    uniform = BitwidthPolicy.uniform(model, 4, 4)
    assert count_cost(model, policy).bit_ops <= count_cost(model, uniform).bit_ops
    lines = (Path(quiet.workdir) / "search" / "metrics.jsonl").open()
    (logged,) = map(json.loads, lines)
    assert {"expected_bit_ops", "expected_file_bytes", "zeta_file_bytes"} <= set(logged)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["packed", "smallest"])
def test_the_commands_keep_a_budget_of_bytes(wide_file, tmp_path, storage):
    budget = middle(wide_file, storage)
    common = [f"--workdir={tmp_path / 'run'}", f"--model={wide_file}", "--epochs=1"]
    common += ["--dataset=digits", "--batch_size=256", "--learning_rate=0.01"]
    bits = ["--weight_bits=2,4,8", "--activation_bits=2,4,8", "--eta=0"]
    said = [f"--budget=W8A8,{budget / 1000}kB", f"--storage={storage}"]
    commands = (
        ["train.search", *common, *bits, *said],
        ["train.finetune", *common],
        [
            "export.tflite", common[0], "--latency_runs=0", "--verify_images=0",
            "--least_agreement=0",
        ],
    )  # fmt: skip
    for module, *flags in commands:
        done = subprocess.run(
            [sys.executable, "-m", module, *flags],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert "more than" not in done.stdout
    size = (tmp_path / "run" / "finetune" / "model.tflite").stat().st_size
    assert 0.6 * budget < size <= budget
