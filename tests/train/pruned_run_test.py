"""The commands, from a search that removes channels to a smaller file."""

import dataclasses
import json
import shutil

import keras
import pytest

from gmpq_tf.cost import count_cost
from gmpq_tf.export.command import ExportConfig, export
from gmpq_tf.models import load_model
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.run.errors import StageError
from gmpq_tf.search.finalists import FinalistsConfig
from gmpq_tf.search.strategies.djpq import DJPQConfig
from gmpq_tf.train.evaluate import EvaluateConfig, evaluate
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.report import ReportConfig, report
from gmpq_tf.train.strategies import ChoicesConfig, search_by
from gmpq_tf.train.teachers import whole_model

STRONG = {"epochs": 6, "importance_learning_rate": 0.2, "learning_rate": 1e-3}


@pytest.fixture
def searched(float_file, digits, quiet):
    """A search whose weight of information removes what it can."""
    return search_by(
        "djpq",
        ChoicesConfig(calibration_images=32, budget="W4A4", model=str(float_file)),
        DJPQConfig(information=20.0, channel_multiple=2, **STRONG),
        FinalistsConfig(),
        digits,
        quiet,
    )


def tuned(digits, quiet, **changes):
    options = {"epochs": 1, "snap_tolerance": 1.0, "calibration_images": 32}
    return finetune(FinetuneConfig(**(options | changes)), digits, quiet)


@pytest.mark.slow
def test_a_pruned_network_goes_the_whole_way(
    searched, float_file, digits, quiet, tmp_path, capsys
):
    policy = BitwidthPolicy.load(searched.folder / "policy.json")
    pruned = searched.folder / "pruned.keras"
    small, whole = load_model(pruned), load_model(float_file)
    assert policy.channels
    for name, count in policy.channels.items():
        assert small.get_layer(name).filters == count < whole.get_layer(name).filters
        assert count % 2 == 0
    kept = json.loads((searched.folder / "values.json").read_text())["kept"]
    assert {name: len(own) for name, own in kept.items()} == dict(policy.channels)
    cost = count_cost(small, policy)
    assert searched.results()["bit_ops"] == cost.bit_ops
    assert cost.macs < count_cost(whole).macs
    # Students follow the whole model, and are of the pruned one.
    student = tuned(digits, quiet)
    record = json.loads(student.record.read_text())["config"]
    assert record["model"]["path"] == str(pruned)
    assert record["teacher"]["path"] == str(float_file) == whole_model(pruned)
    # Uniform bits are of the whole one, unless its file is named.
    uniform = {"policy": "uniform:4,4", "model": str(float_file)}
    wide = tuned(digits, quiet, name="wide", **uniform)
    named = tuned(digits, quiet, name="named", **uniform | {"model": str(pruned)})
    assert named.results()["bit_ops"] < wide.results()["bit_ops"]
    # A policy of another folder finds the model beside it.
    again = tuned(
        digits, quiet, name="again", policy=str(searched.folder / "policy.json")
    )
    assert again.results()["bit_ops"] == student.results()["bit_ops"] == cost.bit_ops
    sizes = {}
    for name in ("finetune", "wide"):
        export(ExportConfig(name=name), digits, quiet)
        found = evaluate(EvaluateConfig(), digits, quiet, name)
        sizes[name] = found["file_bytes"]
        assert found["agreement"] == 1
    assert sizes["finetune"] < sizes["wide"]
    report(ReportConfig(attribution_images=0), digits, quiet)
    workdir = searched.workdir
    rows = json.loads((workdir / "summary.json").read_text())["rows"]
    assert {row["bit_ops"] for row in rows} >= {cost.bit_ops}
    assert json.loads((workdir / "cost.json").read_text())["macs"] == cost.macs
    with pytest.raises(PolicyError, match="channels, and a model in which it has"):
        tuned(digits, quiet, name="wrong", model=str(float_file))
    assert not (workdir / "wrong").exists()
    # Elsewhere the whole model is missed by name.
    moved = dataclasses.replace(quiet, workdir=str(tmp_path / "moved"))
    shutil.copytree(searched.folder, tmp_path / "moved" / "search")
    with pytest.raises(StageError, match="--teacher"):
        tuned(digits, moved)
    assert tuned(digits, moved, distillation=0.0).finished
    # Without the model its policy says what is missing.
    lonely = tmp_path / "lonely" / "policy.json"
    lonely.parent.mkdir()
    shutil.copy(searched.folder / "policy.json", lonely)
    elsewhere = dataclasses.replace(quiet, workdir=str(tmp_path / "elsewhere"))
    with pytest.raises(PolicyError, match=r"needs that model.*pruned\.keras"):
        tuned(digits, elsewhere, policy=str(lonely))


@pytest.mark.slow
def test_a_pruned_model_that_was_changed_is_refused(
    searched, float_file, digits, quiet, capsys
):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(
        searched.folder / "pruned.keras"
    )
    with pytest.raises(StageError, match=r"pruned\.keras, which is damaged"):
        search_by(
            "djpq",
            ChoicesConfig(calibration_images=32, budget="W4A4", model=str(float_file)),
            DJPQConfig(information=20.0, channel_multiple=2, **STRONG),
            FinalistsConfig(),
            digits,
            quiet,
        )
