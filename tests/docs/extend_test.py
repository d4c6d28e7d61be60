"""docs/extend.md does what it says: its own code adds parts that work the whole way."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.budget import UNITS, BudgetError
from gmpq_tf.compression import suited_space
from gmpq_tf.cost_tables import COST_TABLES
from gmpq_tf.data import DATASETS, DataConfig, load_dataset
from gmpq_tf.export.command import FORMATS, ExportConfig
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.lowering import LOWERINGS
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.graph import layer_macs, read_graph
from gmpq_tf.layer_kinds import FUNCTIONS, KINDS, Function, Kind, Role, always
from gmpq_tf.limits import shown_in
from gmpq_tf.models import MODELS, build_model
from gmpq_tf.quantizers import KERNEL_QUANTIZERS
from gmpq_tf.search import STRATEGIES, StrategyError
from tests.docs.blocks import ROOT, blocks

PAGE = "docs/extend.md"
REGISTRIES = (
    *(COST_TABLES, DATASETS, FORMATS, KERNEL_QUANTIZERS, KINDS, LOWERINGS, MODELS),
    *(FUNCTIONS, STRATEGIES, UNITS),
)


def code_of(heading):
    """The blocks of Python below a heading of the page."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    start = text.index(f"## {heading}\n")
    end = text.find("\n## ", start)
    first = text.count("\n", 0, start)
    last = text.count("\n", 0, end if end > 0 else len(text)) + 1
    return [b.text for b in blocks(PAGE) if b.runs and first < b.line <= last]


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the first block of the tutorial leaves, but smaller and not trained."""
    monkeypatch.chdir(tmp_path)
    kept = [dict(registry) for registry in REGISTRIES]
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    for filters in (4, 8, 8):
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    photos = load_dataset(DataConfig("digits", batch_size=32))
    yield {"__name__": "page", "gmpq": gmpq, "model": model, "photos": photos}
    for registry, rows in zip(REGISTRIES, kept, strict=True):
        registry.clear()
        registry.update(rows)


def do(names, heading):
    for code in code_of(heading):
        exec(code, names)  # a page of ours
    return names


@pytest.mark.parametrize(
    "heading",
    [
        "A kernel quantizer",
        "A model",
        "A data set",
        "A search strategy",
        "A resource of a budget",
        "An exporter",
        "A kind of layer",
    ],
)
def test_at_most_three_places(heading):
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^(\d)\. ", section, re.M) == ["1", "2", "3"]
    assert code_of(heading)
    for path in re.findall(r"`((?:gmpq_tf|tests)/[\w/]+\.py)`", section):
        assert (ROOT / path).is_file(), path


def test_a_kernel_quantizer_is_trained_saved_and_exported(names, tmp_path):
    student = do(names, "A kernel quantizer")["student"]
    photos = names["photos"]
    gmpq.calibrate(student, photos.calibration(32))
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    student.fit(photos.train(), steps_per_epoch=1, verbose=0)
    gmpq.snap_biases(student, photos.calibration(32))
    _, layer, *_ = (x for x in student.layers if hasattr(x, "kernel_quantizer"))
    step = layer.kernel_quantizer.step(layer.kernel)
    wanted = np.clip(np.floor(np.asarray(layer.kernel) / step), -7, 7)
    np.testing.assert_array_equal(layer.kernel_quantizer.codes(layer.kernel), wanted)
    student.save(tmp_path / "m.keras")
    again = gmpq.load_model(tmp_path / "m.keras")
    x, _ = next(iter(photos.calibration(32)))
    np.testing.assert_array_equal(again(x), student(x))
    report = export_tflite(again, tmp_path / "m.tflite", verify_data=x)
    assert report.twin.off == 0 and all(row.codes_equal for row in report.layers)


def test_a_model_and_a_data_set_are_known_by_their_names(names):
    do(names, "A model")
    do(names, "A data set")
    stripes = load_dataset(DataConfig("stripes", batch_size=8))
    x, y = next(iter(stripes.calibration(8)))
    assert x.shape == (8, 8, 8, 1) and stripes.class_names == ("upright", "lying")
    upright = np.ptp(np.asarray(x), 1).max((1, 2)) == 0  # each column is one value
    np.testing.assert_array_equal(upright, np.asarray(y) == 0)
    model = build_model("tiny", (8, 8, 1), 2)
    found = gmpq.search_policy(model, stripes.calibration(16), budget="W4A4", images=16)
    assert set(found.policy) == {"conv", "logits"}


def test_a_strategy_has_its_name_and_options_everywhere(names):
    found = do(names, "A search strategy")["found"]
    model, images = names["model"], names["photos"].calibration(32)
    assert found.policy.made_by["strategy"] == "small_first"
    macs = layer_macs(model)
    _, middle, last, _ = macs  # the larger one of the two that are searched
    assert macs[middle] < macs[last]
    assert found.policy[middle].weight_bits >= found.policy[last].weight_bits
    options = {"budget": "W3A3", "progress": "none"}
    other = gmpq.search_policy(model, images, "small_first", weight=0.0, **options)
    assert other.policy.made_by["config"]["weight"] == 0.0
    with pytest.raises(StrategyError, match="Did you mean 'small_first'"):
        gmpq.search_policy(model, images, "smal_first", **options)


def test_a_resource_is_named_in_budgets(names):
    do(names, "A resource of a budget")
    cheap, model = names["cheap"], names["model"]
    bits = cheap.policy.items()
    macs = layer_macs(model)
    spent = sum(
        0.01 * macs[name] * (b.weight_bits + b.activation_bits) for name, b in bits
    )
    full = 0.01 * 64 * sum(macs.values())
    assert 0.08 * full < spent <= 0.1 * full
    (said,) = cheap.policy.made_by["config"]["limits"]
    assert said["unit"] == "pJ" and said["cost"] == pytest.approx(spent)
    assert shown_in("pJ", 2500.0, 12000.0) == "2.5 to 12 nJ"
    space = suited_space(model, "energy=1nJ")
    assert (space.weight_bits, space.activation_bits) == ((2, 3, 4, 5, 6, 8),) * 2
    with pytest.raises(BudgetError, match=r"must name its resource.*'resource=1nJ'"):
        gmpq.search_policy(model, names["photos"].calibration(32), budget="1nJ")
    with pytest.raises(BudgetError, match=r"energy.*its own unit, pJ"):
        gmpq.search_policy(model, names["photos"].calibration(32), budget="energy=1MB")


def test_a_table_in_a_unit_that_nobody_knows_is_refused(names):
    del UNITS["ms"]
    with pytest.raises(BudgetError, match=r"unit='ms' of time.*UNITS\['ms'\]"):
        gmpq.cost_tables.CostTable("time", "ms", {})


def test_an_exporter_is_reached_by_its_name(names):
    do(names, "A resource of a budget")
    do(names, "An exporter")
    again = gmpq.load_model("runs/mine/finetune/model.keras")
    with np.load("runs/mine/finetune/codes.npz") as arrays:
        for name, bits in names["cheap"].policy.items():
            codes, layer = arrays[f"{name}/codes"], again.get_layer(name)
            assert np.abs(codes).max() <= 2 ** (bits.weight_bits - 1)
            kernel = layer.kernel_quantizer(layer.kernel)
            np.testing.assert_allclose(codes * arrays[f"{name}/steps"], kernel, 1e-5)
    record = json.loads(Path("runs/mine/finetune/export_codes.json").read_text())
    assert record["config"]["format"] == "codes"
    with pytest.raises(ValueError, match=r"format='cods'\. Did you mean 'codes'"):
        ExportConfig(format="cods")


@pytest.mark.slow
def test_an_exporter_is_reached_from_the_command_line(names):
    do(names, "A resource of a budget")
    first, _ = code_of("An exporter")
    do(names, "An exporter")
    shutil.copytree("runs/mine", "runs/other")  # this process holds the first
    Path("runs/other/finetune/codes.npz").unlink()
    end = "\nfrom gmpq_tf.export.command import run\nrun()\n"
    Path("codes.py").write_text(first + end, encoding="utf-8")
    flags = ["--workdir=runs/other", "--format=codes", "--dataset=digits"]
    done = subprocess.run(
        [sys.executable, "codes.py", *flags, "--overwrite"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Exported: runs/other/finetune/codes.npz" in done.stdout, done.stderr
    assert Path("runs/other/finetune/codes.npz").exists()


def test_a_kind_of_layer_goes_the_whole_way(names):
    do(names, "A kind of layer")
    result = names["result"]
    report = result.report
    assert report.twin.codes > 1000 and report.twin.off == 0
    x, _ = next(iter(names["photos"].calibration(32)))
    scores, wanted = TFLiteModel(result.path).predict(x), result.student(x)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    swapped = names["mine"].predict(x, verbose=0)
    assert np.mean(scores.argmax(-1) == swapped.argmax(-1)) > 0.8
    kinds = [call.kind for call in read_graph(result.student).calls]
    assert kinds.count("page.Shrink") == kinds.count("page.SwapSides") == 2


class Drop(keras.layers.Layer):
    """Drops whole images in training, as DropPath does."""

    def call(self, x, training=False):
        return x * 2 if training else x


def with_drop(name=None):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="a")(x)
    x = Drop(name=name)(x) if name else x
    x = keras.layers.Conv2D(4, 3, name="b")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


def test_a_layer_that_does_nothing_in_inference_needs_its_row_alone(names, tmp_path):
    kind = f"{__name__}.Drop"
    images = np.random.default_rng(0).normal(0, 1, (16, 8, 8, 1)).astype("float32")
    KINDS[kind] = Kind(kind, Role.IDENTITY, keeps_sign=always)
    files = []
    for model in (with_drop("drop"), with_drop()):
        student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
        gmpq.calibrate(student, images)
        gmpq.snap_biases(student)
        report = export_tflite(student, tmp_path / "m.tflite", verify_data=images)
        assert report.twin.off == 0
        files.append(TFLiteModel(tmp_path / "m.tflite").predict(images))
    np.testing.assert_array_equal(*files)


def test_an_activation_function_needs_its_row_alone(names, tmp_path):
    FUNCTIONS["tanh"] = Function("tanh", lookup=True)
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="tanh")(x)
    x = keras.layers.Activation("tanh")(keras.layers.Conv2D(4, 3)(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    images = np.random.default_rng(0).normal(0, 1, (16, 8, 8, 1)).astype("float32")
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(student, images)
    gmpq.snap_biases(student)
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=images)
    assert report.twin.off == 0
    scores = TFLiteModel(tmp_path / "m.tflite").predict(images)
    np.testing.assert_allclose(scores, student(images), atol=1e-4)


def test_a_role_without_a_function_is_said(names, tmp_path):
    kind = f"{__name__}.Drop"
    KINDS[kind] = Kind(kind, Role.MOVE)
    model = with_drop("drop")
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(student, np.ones((4, 8, 8, 1), "float32"))
    with pytest.raises(ExportError, match=r"layer='drop'.*LOWERINGS\['"):
        export_tflite(student, tmp_path / "m.tflite")
