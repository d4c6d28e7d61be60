"""A detector through the commands: train, quantize, export, measure."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.export.command import ExportConfig, export
from gmpq_tf.files import read_jsonl
from gmpq_tf.graph import searchable_names
from gmpq_tf.models import build_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.run_config import RunConfig, WorkdirConfig
from gmpq_tf.search import RiskConfig
from gmpq_tf.search.finalists import NO_FINALISTS
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig
from gmpq_tf.task import TaskError
from gmpq_tf.task.tasks import task_of
from gmpq_tf.train.evaluate import (
    EvaluateConfig,
    describe,
    evaluate,
    measure_both,
)
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.inputs import check_model
from gmpq_tf.train.pretrain import PretrainConfig, pretrain
from gmpq_tf.train.search import SearchConfig, search
from gmpq_tf.train.strategies import ChoicesConfig, search_by
from gmpq_tf.train.sweep import SweepConfig, check_objective, sweep
from gmpq_tf.train.sweep_spec import read_points
from tests.data.detection_sets import voc_kit

TRAINING = {"learning_rate": 0.003, "optimizer": "adam", "decay_epochs": ()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images with cats and dogs; those of the training twice, to fill a batch."""
    folder = voc_kit(tmp_path_factory.mktemp("voc"))
    return DataConfig(str(folder), image_size=32, batch_size=4, augment="flip")


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    """Everything up to the evaluation."""
    folder = tmp_path_factory.mktemp("run")
    run = RunConfig(workdir=str(folder), progress="none")
    float_config = PretrainConfig(model="ssd_resnet8", epochs=1, **TRAINING)
    pretrain(float_config, data, run)
    backbone = searchable_names(build_model("resnet8", (32, 32, 3), 10))
    policy = BitwidthPolicy("resnet8", dict.fromkeys(backbone, (4, 5)))
    policy.save(folder / "cifar.json")
    config = FinetuneConfig(
        policy=str(folder / "cifar.json"),
        other_layers=(8, 8),
        distillation=0.5,
        epochs=1,
        snap_tolerance=1.0,
        **TRAINING,
    )
    finetune(config, data, run)
    plain = WorkdirConfig(workdir=str(folder))
    export(ExportConfig(latency_runs=0), data, plain)
    names = ("pretrain", "finetune")
    config = EvaluateConfig(split="test")
    return folder, {name: evaluate(config, data, plain, name) for name in names}


@pytest.mark.slow
def test_a_classifier_s_policy_serves_the_detector(workdir):
    folder, _ = workdir
    policy = BitwidthPolicy.load(folder / "finetune/policy.json")
    bits = {n: (b.weight_bits, b.activation_bits) for n, b in policy.items()}
    assert bits["stage2_block1_conv1"] == bits["stem_conv"] == (4, 5)
    assert bits["boxes0"] == bits["extra1_conv1"] == (8, 8)
    assert policy.made_by["config"]["policy_model"] == "resnet8"


@pytest.mark.slow
def test_keras_file_and_twin_are_measured_alike(workdir):
    _, results = workdir
    floats, tuned = results["pretrain"], results["finetune"]
    assert floats["map_07"] is not None and floats["accuracy"] is None
    for name in ("map_07", "map_area"):
        assert tuned[f"tflite_{name}"] == pytest.approx(tuned[name], abs=0.005)
        assert tuned[f"twin_{name}"] == tuned[f"tflite_{name}"]
    assert tuned["agreement"] > 0.99 and tuned["twin_agreement"] == 1.0
    line = describe("finetune", tuned)
    assert line.startswith("finetune: map_07 ") and "map_07 of .tflite" in line
    assert "assumed" not in line


@pytest.mark.slow
def test_what_is_recorded_is_the_task_s_figure(workdir):
    folder, _ = workdir
    done = json.loads((folder / "pretrain/done.json").read_text())
    text = json.dumps(done)
    assert "val_map_07" in text and "val_accuracy" not in text
    report = json.loads((folder / "finetune/export_report.json").read_text())
    assert {each["name"] for each in report["outputs"]} == {"boxes", "scores"}


def test_targets_come_with_the_images_and_labels_without(data):
    model = build_model("ssd_resnet8", (32, 32, 3), 2)
    dataset = load_dataset(data)
    _, labels = next(iter(dataset.validation()))
    encoded = dataclasses.replace(dataset, encode=task_of(model).encode)
    _, targets = next(iter(encoded.validation()))
    assert set(labels) == {"boxes", "classes", "difficult"}
    assert set(targets) == {"boxes", "scores"}
    assert int(np.sum(np.asarray(targets["scores"]) > 0)) > 0


@pytest.mark.slow
def test_a_search_without_attribution_takes_a_detector(data, workdir, tmp_path):
    folder, _ = workdir
    run = WorkdirConfig(workdir=str(tmp_path), progress="none")
    config = ChoicesConfig(
        model=str(folder / "pretrain/model.keras"), budget="W4A4", calibration_images=4
    )
    options = LossDeltaConfig(images=4)
    search_by("loss_delta", config, options, NO_FINALISTS, data, run)
    policy = BitwidthPolicy.load(tmp_path / "search/policy.json")
    assert policy["boxes3"].weight_bits == policy["scores0"].weight_bits == 8


@pytest.mark.slow
def test_a_search_with_attribution_takes_a_detector(data, workdir, tmp_path):
    folder, _ = workdir
    run = RunConfig(workdir=str(tmp_path), progress="none")
    config = SearchConfig(
        model=str(folder / "pretrain/model.keras"),
        epochs=1,
        calibration_images=4,
        risk=RiskConfig(eta=100.0, budget="W4A4"),
        **TRAINING,
    )
    search(config, data, run)
    policy = BitwidthPolicy.load(tmp_path / "search/policy.json")
    assert policy.made_by["strategy"] == "gmpq"
    assert policy["boxes3"].weight_bits == policy["scores0"].weight_bits == 8
    (row,) = read_jsonl(tmp_path / "search/metrics.jsonl")
    assert row["generalization_risk"] > 0 and row["rank_distance"] > 0


@pytest.mark.slow
def test_a_policy_searched_on_object_crops_serves_the_detector(tmp_path):
    content = {
        name: ((64, 64), [(kind, 5, 5, 55, 50, 0), (kind, 10, 20, 60, 64, 0)])
        for name, kind in zip("abcdef", ("cat", "dog") * 3, strict=True)
    }
    folder = voc_kit(tmp_path / "voc", {"train": "abcd", "test": "ef"}, content)
    crops = DataConfig(
        str(folder), labels="crops", image_size=32, batch_size=4, validation_size=0
    )
    run = RunConfig(workdir=str(tmp_path / "run"), progress="none")
    pretrain(PretrainConfig(model="resnet8", epochs=1, **TRAINING), crops, run)
    risk = RiskConfig(eta=100.0, budget="W4A4")
    config = SearchConfig(epochs=1, calibration_images=4, risk=risk, **TRAINING)
    search(config, crops, run)
    policy = BitwidthPolicy.load(tmp_path / "run/search/policy.json")
    detector = build_model("ssd_resnet8", (64, 64, 3), 2)
    adapted = policy.adapt(detector, (8, 8), ["head_dense"])
    assert adapted["stage2_block1_conv1"] == policy["stage2_block1_conv1"]
    assert adapted["scores0"].weight_bits == 8


def test_difficult_objects_alone_give_no_figure():
    model = build_model("ssd_resnet8", (32, 32, 3), 2)
    labels = {
        "boxes": np.array([[[0.1, 0.1, 0.6, 0.7]]], "float32"),
        "classes": np.array([[1]]),
        "difficult": np.array([[True]]),
    }
    images = np.zeros((1, 32, 32, 3), "float32")
    found = measure_both(model, None, [(images, labels)], class_names=("cat", "dog"))
    assert found["map_07"] is found["map_area"] is found["map_coco"] is None
    line = describe("pretrain", {**found, "split": "test"})
    assert line.startswith("pretrain: no average precision, for want of objects that")
    (offsets,) = [v for v in model.weights if v.path == "boxes0/bias"]
    offsets.assign(np.nan * offsets)
    with pytest.raises(TaskError, match="'boxes' of the Keras model, for 1 of 1"):
        measure_both(model, None, [(images, labels)], class_names=("cat", "dog"))


def test_each_is_told_which_data_fits(data):
    boxes, digits = load_dataset(data), load_dataset(DataConfig("digits"))
    detector = build_model("ssd_resnet8", (32, 32, 3), 2)
    check_model(detector, boxes)
    with pytest.raises(ValueError, match="one with boxes, such as voc0712"):
        check_model(detector, digits)
    classifier = build_model("resnet8", (32, 32, 3), 2)
    with pytest.raises(ValueError, match="one with a class an image, such as cifar10"):
        check_model(classifier, boxes)
    with pytest.raises(ValueError, match="of 5 classes for 2"):
        check_model(build_model("ssd_resnet8", (32, 32, 3), 5), boxes)


@pytest.mark.parametrize("name", ["ssd_resnet8", "faster_rcnn_resnet18"])
def test_a_detector_given_tensors_is_told_which_data_fits(name):
    options = {"alpha": 0.0625} if name.startswith("faster") else {}
    model = build_model(name, (32, 32, 3), 2, **options)
    config = DataConfig("pairs.npz")
    tensors = SimpleNamespace(targets={"output": None}, holds="tensors", config=config)
    with pytest.raises(ValueError, match="one with boxes, such as voc0712"):
        check_model(model, tensors)


def test_a_sweep_of_detectors_is_of_average_precision(data, tmp_path):
    path = tmp_path / "spec.json"
    spec = {"finetune": {"dataset": data.dataset}, "grid": {"seed": [0]}}
    path.write_text(json.dumps(spec))
    (point,) = read_points(path).values()
    check_objective(("map_07", "bit_ops"), point)
    with pytest.raises(StageError, match=r"figure map_07\. Received: .*=accuracy"):
        check_objective(("accuracy",), point)


@pytest.mark.slow
def test_detectors_are_swept(data, tmp_path):
    shown = {"dataset": data.dataset, "image_size": 32}
    trained = {**shown, "batch_size": 4, "calibration_images": 8}
    spec = {
        "search": {**trained, "strategy": "loss_delta", "images": 8},
        "finetune": {**trained, "epochs": 1, "optimizer": "adam", "snap_tolerance": 1},
        "evaluate": {**shown, "split": "test"},
        "grid": {"search.budget": ["W4A4"]},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    model = tmp_path / "model.keras"
    build_model("ssd_resnet8", (32, 32, 3), 2).save(model)
    config = SweepConfig(str(tmp_path / "spec.json"), str(model))
    path = sweep(config, WorkdirConfig(str(tmp_path / "sweep")))
    (row,) = csv.DictReader(path.open())
    done = path.parent / "points" / row["point"] / "finetune" / "evaluation.json"
    assert float(row["map_07"]) == json.loads(done.read_text())["map_07"]
    assert "accuracy" not in row and (path.parent / "map_07_bops.png").exists()
