"""Measured decisions, against NumPy; and what makes a measurement stale."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image

import gmpq_tf as gmpq
from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.twin import program
from gmpq_tf.progress import INTERVALS
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.train.counting import counted
from gmpq_tf.train.evaluate import (
    EvaluateConfig,
    describe,
    evaluate,
    measure_both,
    twin_of_student,
)
from gmpq_tf.train.report import ReportConfig, report
from gmpq_tf.train.sweep_spec import read_points

L = keras.layers
X = np.random.default_rng(0).uniform(-1, 1, (48, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 2, 48)


class Off:
    """A file whose outputs are those of the model, moved."""

    def __init__(self, model, by):
        self.model, self.by = model, by

    def predict(self, x, batch_size):
        return np.asarray(self.model(x)) + self.by


def batches():
    return [(X[:32], Y[:32]), (X[32:], Y[32:])]


def model_of(units, activation):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(units, activation=activation)(inputs))


@pytest.mark.parametrize(
    ("units", "activation", "decide", "compared"),
    [
        (1, None, lambda v: v[:, 0] > 0, "decisions above 0"),
        (1, "sigmoid", lambda v: v[:, 0] > 0.5, "decisions at 0.5"),
        (2, None, lambda v: v.argmax(-1), "argmax of 2 classes"),
        (2, "softmax", lambda v: v.argmax(-1), "argmax of 2 classes"),
        (2, "sigmoid", lambda v: v.argmax(-1), "argmax of 2 classes"),
    ],
)
def test_decisions_are_those_of_the_model(units, activation, decide, compared):
    model = model_of(units, activation)
    by = 0.1 * np.arange(1, units + 1, dtype="float32")
    result = measure_both(model, Off(model, by), batches())
    keras_says, file_says = decide(np.asarray(model(X))), decide(model(X).numpy() + by)
    assert result["accuracy"] == pytest.approx(np.mean(keras_says == Y))
    assert result["tflite_accuracy"] == pytest.approx(np.mean(file_says == Y))
    assert result["agreement"] == pytest.approx(np.mean(keras_says == file_says))
    assert (result["images"], result["compared"]) == (48, compared)
    assert compared in describe("a", {**result, "split": "test"})
    alone = measure_both(model, None, batches())
    assert alone["accuracy"] == result["accuracy"]
    assert alone["tflite_accuracy"] is alone["agreement"] is None


def test_numbers_have_errors_and_no_accuracy():
    model = model_of(3, None)
    result = measure_both(model, Off(model, 0.25), batches(), "numbers")
    assert (
        result["accuracy"] is result["tflite_accuracy"] is result["agreement"] is None
    )
    assert result["mean_error"] == pytest.approx(0.25, rel=1e-5)
    line = describe("a", {**result, "split": "test"})
    assert "off by 0.25" in line and "%" not in line


@pytest.mark.parametrize("file", [True, False])
def test_without_labels_the_float_model_is_what_to_compare_with(file):
    model, by = model_of(2, None), np.array([0.0, 0.3], "float32")
    floats = keras.Sequential([model, L.Lambda(lambda x: x * [1.0, 1.2])])
    bare = [(x, None) for x, _ in batches()]
    shipped = Off(model, by) if file else None
    result = measure_both(model, shipped, bare, reference=floats)
    wanted = model(X).numpy() * np.array([1.0, 1.2])
    ours = model(X).numpy() + (by if file else 0)
    same = np.mean(wanted.argmax(-1) == ours.argmax(-1))
    assert 0 < same < 1 and result["float_agreement"] == pytest.approx(same)
    line = describe("a", {**result, "split": "test"})
    assert f"{100 * same:.2f} % as the float model" in line
    numbers = measure_both(model, shipped, bare, "numbers", reference=floats)
    off = np.abs(wanted - ours).mean()
    assert numbers["float_error"] == pytest.approx(off, rel=1e-5)
    share = off / (wanted.max() - wanted.min())
    assert numbers["float_relative_error"] == pytest.approx(share, rel=1e-5)
    line = describe("a", {**numbers, "split": "test"})
    assert f"{off:.3g} from the float model in the mean, {100 * share:.2f} %" in line


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6, 3), value, "uint8")).save(path)


def test_a_quantized_model_is_measured_in_the_integers_of_its_file(tmp_path):
    model = model_of(2, None)
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 2, 2))
    gmpq.calibrate(student, X)
    export_tflite(student, tmp_path / "m.tflite", latency_runs=0)
    file = TFLiteModel(tmp_path / "m.tflite")
    twin = twin_of_student(student)
    result = measure_both(student, file, batches(), twin=twin)
    decided = file.predict(X).argmax(-1)
    assert result["twin_accuracy"] == result["tflite_accuracy"] == np.mean(decided == Y)
    assert result["twin_agreement"] == 1.0
    line = describe("a", {**result, "split": "test"})
    assert f"in integers {100 * np.mean(decided == Y):.2f} %" in line
    assert "100.00 % in integers" in line
    alone = measure_both(student, None, batches(), twin=twin)
    assert alone["twin_accuracy"] == result["twin_accuracy"]
    assert alone["twin_agreement"] is None
    moved = measure_both(student, Off(student, [-9.0, 9.0]), batches(), twin=twin)
    assert moved["twin_agreement"] < 1.0
    spans = measure_both(student, file, batches(), "numbers", twin)
    assert (spans["twin_accuracy"], spans["twin_max_error"]) == (None, 0.0)


def test_a_float_model_has_no_integers(capsys, monkeypatch):
    model = model_of(2, None)
    assert twin_of_student(model) is None
    assert measure_both(model, None, batches())["twin_accuracy"] is None
    assert not capsys.readouterr().out
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 2, 2))
    gmpq.calibrate(student, X)
    monkeypatch.delitem(program.OPERATORS, "FULLY_CONNECTED")
    assert twin_of_student(student) is None
    assert "in float only" in capsys.readouterr().out


def test_a_measurement_is_stale_once_images_were_added(tmp_path):
    for split in ("train", "test"):
        for label, value in (("dark", 10), ("light", 240)):
            for number in range(5):
                picture(tmp_path / split / label / f"{number}.png", value)
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(inputs)))
    weights = np.stack([-np.ones(108), np.ones(108)], axis=1) / 108
    model.layers[-1].set_weights([weights, np.array([0.9, 0.0])])
    (tmp_path / "run" / "pretrain").mkdir(parents=True)
    model.save(tmp_path / "run" / "pretrain" / "model.keras")
    data = DataConfig(str(tmp_path), image_size=6, scaling="0..1", validation_size=2)
    run, config = WorkdirConfig(str(tmp_path / "run")), EvaluateConfig(split="test")
    first = evaluate(config, data, run, "pretrain")
    assert (first["images"], first["accuracy"]) == (10, 1.0)
    assert evaluate(config, data, run, "pretrain").items() >= first.items()
    for number in range(10):
        picture(tmp_path / "test" / "dark" / f"wrong{number}.png", 200)
    second = evaluate(config, data, run, "pretrain")
    assert (second["images"], second["accuracy"]) == (20, 0.5)
    other = dataclasses.replace(config, output_kind="numbers")
    assert evaluate(other, data, run, "pretrain")["accuracy"] is None
    with pytest.raises(StageError, match="pretrain, measured as numbers"):
        report(ReportConfig(attribution_images=0), data, run)


def test_the_integers_can_be_left_out(tmp_path):
    data = DataConfig("digits", validation_size=40)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, L.Dense(10)(L.Flatten()(inputs)))
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 8))
    gmpq.calibrate(student, load_dataset(data).calibration(40))
    (tmp_path / "student").mkdir()
    student.save(tmp_path / "student" / "model.keras")
    run = WorkdirConfig(workdir=str(tmp_path), progress="none")
    brief, whole = EvaluateConfig(twin=False), EvaluateConfig()
    assert evaluate(brief, data, run, "student")["twin_accuracy"] is None
    measured = evaluate(whole, data, run, "student")
    assert measured["twin_accuracy"] is not None
    # Asked for less than there is, nothing is measured anew.
    assert evaluate(brief, data, run, "student")["twin_accuracy"] is not None


def test_a_long_measurement_shows_how_far_it_is(capsys, monkeypatch):
    list(counted(batches(), 48, "student", "line"))
    assert not capsys.readouterr().out  # done in less than a minute
    monkeypatch.setitem(INTERVALS, "line", 0.0)
    seen = list(counted(batches(), 48, "student", "line"))
    np.testing.assert_array_equal(np.concatenate([x for x, _ in seen]), X)
    assert capsys.readouterr().out == "student: 32 of 48 images, 00:00 left\n"
    list(counted(batches(), 48, "student", "none"))
    assert not capsys.readouterr().out
    list(counted(batches(), 48, "student", "bar"))
    assert "student:" in capsys.readouterr().out


def test_a_sweep_of_numbers_is_refused_before_it_runs(tmp_path):
    spec = {"evaluate": {"output_kind": "numbers"}, "grid": {"seed": [0]}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(StageError, match="numbers do not have"):
        read_points(tmp_path / "spec.json")


def test_images_without_labels_have_no_accuracy(tmp_path):
    run = WorkdirConfig(workdir=str(tmp_path / "run"))
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, L.Dense(10)(L.Flatten()(inputs)))
    (tmp_path / "run" / "pretrain").mkdir(parents=True)
    model.save(tmp_path / "run" / "pretrain" / "model.keras")
    data = DataConfig("digits", labels="none")
    result = evaluate(EvaluateConfig(), data, run, "pretrain")
    assert result["accuracy"] is None and result["images"] > 0
    page = report(ReportConfig(attribution_images=0), data, run).read_text()
    assert "the images had no labels" in page
    with pytest.raises(ValueError, match="At most 8 images"):
        ReportConfig(attribution_images=9)
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    assert rows[0]["accuracy"] is None


def test_several_sigmoids_without_labels_are_as_many_decisions(tmp_path, monkeypatch):
    """As the export compares them; the largest of them decides nothing."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, L.Dense(3, activation="sigmoid")(L.Flatten()(inputs)))
    folder = tmp_path / "pretrain"
    folder.mkdir()
    model.save(folder / "model.keras")
    (folder / "model.tflite").touch()
    file = Off(model, np.float32([0.2, 0.2, 0.2]))  # their order stays
    file.file_bytes = 0
    monkeypatch.setattr("gmpq_tf.train.evaluate.open_tflite", lambda path: file)
    data = DataConfig("digits", labels="none")
    run = WorkdirConfig(workdir=str(tmp_path))
    result = evaluate(EvaluateConfig(split="test"), data, run, "pretrain")
    images = np.concatenate([np.asarray(batch) for batch in load_dataset(data).test()])
    scores = np.asarray(model(images))
    equal = np.mean((scores > 0.5) == (scores + 0.2 > 0.5))
    assert result["agreement"] == pytest.approx(equal) and equal < 0.9
    assert result["compared"] == "decisions at 0.5, 3 of each image"


@pytest.mark.parametrize(
    "given, said",
    [
        ({"map_07": 0.5}, "fine: map_07 50.00 % (72 test images)"),
        (
            {"map_07": 0.5, "agreement": 1.0},
            "fine: map_07 50.00 %, agreement 100.00 % "
            "(72 test images; argmax of 4 classes at each of 9 places)",
        ),
        (
            {"map_07": 0.5, "twin_agreement": 1.0},
            "fine: map_07 50.00 %, 100.00 % in integers "
            "(72 test images; argmax of 4 classes at each of 9 places)",
        ),
        (
            {"accuracy": 0.5},
            "fine: 50.00 % (72 test images; argmax of 4 classes at each of 9 places)",
        ),
    ],
)
def test_what_was_compared_stands_beside_what_was_compared(given, said):
    """Average precision is not counted over default boxes, agreement is."""
    kept = {"accuracy": None, "tflite_accuracy": None, "images": 72, "split": "test"}
    compared = "argmax of 4 classes at each of 9 places"
    assert describe("fine", {**kept, "compared": compared, **given}) == said
