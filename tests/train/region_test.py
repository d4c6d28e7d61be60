"""A two-stage detector through the commands: train, quantize, export, measure."""

import keras
import numpy as np
import pytest

from gmpq_tf.data import DataConfig
from gmpq_tf.export.command import ExportConfig, export
from gmpq_tf.files import read_jsonl
from gmpq_tf.graph import searchable_names
from gmpq_tf.models import build_model, load_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.loop import EpochBackup
from gmpq_tf.run.run_config import RunConfig, WorkdirConfig
from gmpq_tf.search import RiskConfig
from gmpq_tf.search.finalists import NO_FINALISTS
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig
from gmpq_tf.train.evaluate import EvaluateConfig, describe, evaluate
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.pretrain import PretrainConfig, pretrain
from gmpq_tf.train.report import ReportConfig, report
from gmpq_tf.train.search import SearchConfig, search
from gmpq_tf.train.strategies import ChoicesConfig, search_by
from tests.data.detection_sets import voc_kit

TRAINING = {"learning_rate": 0.003, "optimizer": "adam", "decay_epochs": ()}
NAME = "faster_rcnn_resnet18"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = voc_kit(tmp_path_factory.mktemp("voc"))
    return DataConfig(str(folder), image_size=64, batch_size=4, augment="flip")


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    """Everything up to the evaluation."""
    folder = tmp_path_factory.mktemp("run")
    run = RunConfig(workdir=str(folder), progress="none")
    config = PretrainConfig(model=NAME, alpha=0.125, epochs=2, **TRAINING)
    pretrain(config, data, run)
    backbone = searchable_names(build_model("resnet18", (32, 32, 3), 10))
    policy = BitwidthPolicy("resnet18", dict.fromkeys(backbone, (4, 5)))
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
    return folder


def test_both_files_are_written_measured_and_shown(data, workdir):
    plain = WorkdirConfig(workdir=str(workdir))
    path = export(ExportConfig(latency_runs=0), data, plain)
    assert (path.parent / "model_head.tflite").is_file()
    before = path.stat().st_mtime_ns
    export(ExportConfig(latency_runs=0), data, plain)
    assert path.stat().st_mtime_ns == before  # up to date
    (path.parent / "model_head.tflite").unlink()
    export(ExportConfig(latency_runs=0), data, plain)
    assert (path.parent / "model_head.tflite").is_file()
    found = evaluate(EvaluateConfig(split="test"), data, plain, "finetune")
    for name in ("map_07", "map_area"):
        assert found[f"tflite_{name}"] == pytest.approx(found[name], abs=0.005)
        assert found[f"twin_{name}"] == pytest.approx(found[f"tflite_{name}"], abs=1e-6)
    assert found["agreement"] > 0.99 and found["twin_agreement"] == 1.0
    sizes = [p.stat().st_size for p in path.parent.glob("*.tflite")]
    assert found["file_bytes"] == sum(sizes) and len(sizes) == 2
    assert "map_07 of .tflite" in describe("finetune", found)
    page = report(ReportConfig(), data, plain)
    assert "finetune" in page.read_text(encoding="utf-8")
    policy = BitwidthPolicy.load(workdir / "finetune/policy.json")
    assert policy["stage4_block1_conv1"].weight_bits == 4
    assert policy["roi_scores"].weight_bits == policy["rpn_conv"].weight_bits == 8


def test_an_interrupted_training_ends_the_same(data, tmp_path, monkeypatch):
    config = PretrainConfig(model=NAME, alpha=0.125, epochs=2, **TRAINING)
    whole = RunConfig(workdir=str(tmp_path / "whole"), progress="none")
    cut = RunConfig(workdir=str(tmp_path / "cut"), progress="none")
    one = pretrain(config, data, whole)
    saved = EpochBackup.on_epoch_end

    def stop(self, epoch, logs=None):
        saved(self, epoch, logs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochBackup, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, data, cut)
    keras.backend.clear_session()
    other = pretrain(config, data, cut)
    models = [load_model(each.folder / "model.keras") for each in (one, other)]
    for first, second in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_array_equal(first, second)


def test_bits_are_searched(data, workdir, tmp_path):
    run = WorkdirConfig(workdir=str(tmp_path), progress="none")
    config = ChoicesConfig(
        model=str(workdir / "pretrain/model.keras"), budget="W4A4", calibration_images=4
    )
    options = LossDeltaConfig(images=4)
    search_by("loss_delta", config, options, NO_FINALISTS, data, run)
    policy = BitwidthPolicy.load(tmp_path / "search/policy.json")
    assert policy["roi_boxes"].weight_bits == policy["rpn_scores"].weight_bits == 8
    assert len({bits for _, bits in policy.items()}) > 1


@pytest.mark.parametrize("eta", [100.0, 0.0])
def test_bits_are_searched_with_and_without_attribution(data, tmp_path, eta):
    run = RunConfig(workdir=str(tmp_path), progress="none")
    path = tmp_path / "float.keras"
    build_model(NAME, (64, 64, 3), 2, alpha=0.125).save(path)
    config = SearchConfig(
        model=str(path),
        epochs=1,
        calibration_images=4,
        risk=RiskConfig(eta=eta, budget="W4A4"),
        **TRAINING,
    )
    search(config, data, run)
    policy = BitwidthPolicy.load(tmp_path / "search/policy.json")
    assert policy.made_by["strategy"] == ("gmpq" if eta else "edmips")
    assert policy["roi_boxes"].weight_bits == policy["rpn_scores"].weight_bits == 8
    (row,) = read_jsonl(tmp_path / "search/metrics.jsonl")
    assert (row["generalization_risk"] > 0) == bool(eta)
