"""One short demo run; the commands after training are tested on what it leaves."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from gmpq_tf.cost import count_cost
from gmpq_tf.data import load_dataset
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.train.attribute import to_pixels
from gmpq_tf.train.demo import DemoConfig, demo, with_preset
from gmpq_tf.train.evaluate import EvaluateConfig, evaluate, model_folders
from gmpq_tf.train.report import ReportConfig, report, row_name

CONFIG = DemoConfig(purpose="fine_tuning", search_epochs=1, finetune_epochs=1, bits=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory, float_file, digits):
    workdir = tmp_path_factory.mktemp("demo")
    run = RunConfig(workdir=str(workdir), progress="none")
    config = dataclasses.replace(CONFIG, model=str(float_file))
    demo(config, digits, run)
    return run


def read(run, name):
    return json.loads((Path(run.workdir) / name).read_text())


def test_every_stage_leaves_its_files(run):
    folder = Path(run.workdir)
    for name in ("finetune", "uniform"):
        for file in ("model.keras", "model.tflite", "policy.json", "metrics.jsonl"):
            assert (folder / name / file).is_file()
    page = (folder / "report" / "report.html").read_text()
    assert "searched" in page and "uniform W4A4" in page


def test_the_table_agrees_with_the_models(run, digits):
    rows = {row["name"]: row for row in read(run, "summary.json")["rows"]}
    assert next(iter(rows)) == "float" and set(rows) == {
        "float",
        "uniform W4A4",
        "searched",
    }
    folder = Path(run.workdir)
    teacher = keras.models.load_model(folder / "pretrain" / "model.keras")
    policy = BitwidthPolicy.load(folder / "finetune" / "policy.json")
    assert rows["searched"]["bit_ops"] == count_cost(teacher, policy).bit_ops
    assert rows["searched"]["bit_ops"] <= rows["uniform W4A4"]["bit_ops"]
    size = (folder / "finetune" / "model.tflite").stat().st_size
    assert rows["searched"]["file_bytes"] == size
    images, labels = next(iter(load_dataset(digits).test().unbatch().batch(10**6)))
    right = np.argmax(teacher.predict(images, verbose=0), -1) == labels
    assert rows["float"]["accuracy"] == pytest.approx(float(np.mean(right)))


def test_the_searched_budget_is_the_cost_of_the_uniform_model(run):
    summary = read(run, "summary.json")
    costs = {row["name"]: row["bit_ops"] for row in summary["rows"]}
    assert summary["bit_ops_budget"] == costs["uniform W4A4"]


@pytest.mark.slow
def test_without_training_both_models_cost_the_same_and_none_is_trained(
    tmp_path, float_file, digits
):
    quiet = RunConfig(workdir=str(tmp_path), progress="none")
    config = DemoConfig(purpose="post_training", bits=3, model=str(float_file))
    demo(config, digits, quiet)
    costs = {row["name"]: row["bit_ops"] for row in read(quiet, "summary.json")["rows"]}
    assert 0.9 * costs["uniform W3A3"] <= costs["searched"] <= costs["uniform W3A3"]
    policy = BitwidthPolicy.load(tmp_path / "finetune" / "policy.json")
    assert policy["first"].activation_bits == 8  # what comes from a camera
    for name in ("finetune", "uniform"):
        assert not (tmp_path / name / "metrics.jsonl").exists()


def test_the_digits_show_what_bits_are_worth_without_training():
    config = with_preset(DemoConfig(), "digits")
    assert (config.purpose, config.model) == ("post_training", "digits_mobilenet")
    assert (config.bits, config.activation_bits) == (2, 4)
    assert with_preset(DemoConfig(), "cifar10").purpose == "fine_tuning"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"bits": 3}, (3, 3)),
        ({"bits": 3, "activation_bits": 5}, (3, 5)),
        ({"purpose": "fine_tuning"}, (3, 3)),
        ({"purpose": "fine_tuning", "bits": 2}, (2, 2)),
    ],
)
def test_bits_that_are_given_are_those_of_the_uniform_model(given, expected):
    config = with_preset(DemoConfig(**given), "digits")
    assert (config.bits, config.activation_bits) == expected


def test_a_second_run_trains_nothing(run, digits, float_file):
    paths = list(Path(run.workdir).glob("*/model.*"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    demo(dataclasses.replace(CONFIG, model=str(float_file)), digits, run)
    assert {path: path.stat().st_mtime_ns for path in paths} == before


def test_attribution_shows_the_first_test_images(run, digits):
    dataset = load_dataset(digits)
    images, labels = next(iter(dataset.test()))
    with np.load(Path(run.workdir) / "attribution.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["labels"], labels[:8])
        assert arrays["images"].dtype == np.uint8
        np.testing.assert_allclose(arrays["images"] / 255, images[:8], atol=1 / 500)
        assert arrays["teacher"].shape == arrays["student_searched"].shape == (8, 8, 8)
        assert arrays["rank_distance_uniform_W4A4"].shape == (8,)


def test_pixels_come_back_from_every_scaling(digits):
    pixels = np.random.randint(0, 256, (2, 4, 4, 1)).astype("uint8")
    for kind, image in {"0..255": pixels * 1.0, "-1..1": pixels / 127.5 - 1}.items():
        config = dataclasses.replace(digits, scaling=kind)
        np.testing.assert_array_equal(to_pixels(image, load_dataset(config)), pixels)


@pytest.mark.slow
def test_evaluation_on_the_validation_split(run, digits):
    config = EvaluateConfig(split="validation")
    result = evaluate(config, digits, run, "uniform")
    assert result["images"] == load_dataset(digits).sizes["validation"]
    assert 0 <= result["agreement"] <= 1
    evaluate(EvaluateConfig(split="test"), digits, run, "uniform")


def test_folders_without_a_model_are_refused(run, tmp_path):
    assert model_folders(run.workdir) == ["pretrain", "finetune", "uniform"]
    with pytest.raises(StageError, match="Did you mean 'uniform'"):
        model_folders(run.workdir, ("unifrom",))
    with pytest.raises(StageError, match=r"train\.pretrain"):
        model_folders(tmp_path)


def test_a_report_without_measurements_says_what_to_do(tmp_path, digits):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "model.keras").touch()
    run = RunConfig(workdir=str(tmp_path))
    with pytest.raises(StageError, match=r"train\.evaluate"):
        report(ReportConfig(), digits, run)


def test_a_table_of_different_splits_is_refused(tmp_path, digits):
    for name, split in {"pretrain": "test", "finetune": "validation"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.keras").touch()
        (tmp_path / name / "evaluation.json").write_text(f'{{"split": "{split}"}}')
    with pytest.raises(StageError, match="same images"):
        report(ReportConfig(), digits, RunConfig(workdir=str(tmp_path)))


def test_rows_are_named_by_how_their_policy_was_made(tmp_path):
    folder = tmp_path / "other"
    made_by = {
        "strategy": "uniform",
        "config": {"weight_bits": 3, "activation_bits": 2},
    }
    BitwidthPolicy("m", {"a": (3, 2)}, made_by).save(folder / "policy.json")
    assert row_name(folder) == "uniform W3A2 (other)"
    BitwidthPolicy("m", {"a": (3, 2)}).save(folder / "policy.json")
    assert row_name(folder) == "other"
    assert row_name(tmp_path / "pretrain") == "float"


def test_presets_fill_in_what_is_not_given(float_file):
    assert with_preset(DemoConfig(), "digits").model == "digits_mobilenet"
    assert with_preset(DemoConfig(), "cifar10").model == "resnet8"
    trained = with_preset(DemoConfig(model=str(float_file)), "cifar10")
    assert trained.pretrain_epochs == 0
    assert with_preset(DemoConfig(search_epochs=3), "digits").search_epochs == 3
