"""The five-minute command: files, labels or none, resume, what it refuses."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from gmpq_tf.budget import BudgetError
from gmpq_tf.compression.corrections import Mended
from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.inputs import InputError
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.errors import StageError
from gmpq_tf.task import TaskError
from gmpq_tf.train import compress as command
from gmpq_tf.train.compress import CompressConfig, compress
from gmpq_tf.transform import quantize_model

QUICK = {
    "calibration_images": 32,
    "table_images": 16,
    "verify_images": 16,
    "latency_runs": 0,
    "least_agreement": 0.5,
}
COMMAND = [sys.executable, "-m", "train.compress"]


def quick(float_file, **changes):
    return CompressConfig(model=str(float_file), **{**QUICK, **changes})


def write_images(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        pixels = random.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


def run_command(repo_root, *words):
    return subprocess.run(
        [*COMMAND, *words, "--progress=line", "--threads=1"],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_budget_of_bytes_with_labels(float_file, digits, quiet, capsys):
    path = compress(quick(float_file, budget="20kB"), digits, quiet)
    said = capsys.readouterr().out
    assert path.stat().st_size <= 20_000
    for number in range(1, 6):
        assert f"[{number}/5]" in said
    policy = BitwidthPolicy.load(path.parent / "policy.json")
    assert {b.activation_bits for b in policy.values()} == {8}
    result = json.loads((path.parent / "evaluation.json").read_text())
    file, right = TFLiteModel(path), []
    for images, labels in load_dataset(digits).test().as_numpy_iterator():
        right.extend(np.argmax(file.predict(images), -1) == labels)
    assert result["tflite_accuracy"] == pytest.approx(np.mean(right))
    assert result["images"] == len(right) and result["split"] == "test"
    rows = json.loads((path.parents[1] / "summary.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["float", "compress"]
    # Again: nothing is done again.
    before = path.stat().st_mtime_ns
    assert compress(quick(float_file, budget="20kB"), digits, quiet) == path
    assert path.stat().st_mtime_ns == before
    assert "finished already" in capsys.readouterr().out


@pytest.mark.slow
def test_each_stage_goes_on(float_file, digits, quiet, monkeypatch):
    config = quick(float_file, budget="W4A4", correction="biases")
    whole = dataclasses.replace(quiet, workdir=quiet.workdir + "_whole")
    expected = compress(config, digits, whole).read_bytes()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    for name in ("correct", "export", "evaluate", "report"):
        with monkeypatch.context() as patch:
            patch.setattr(command, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                compress(config, digits, quiet)
    path = compress(config, digits, quiet)
    assert path.read_bytes() == expected
    with pytest.raises(StageError, match="budget: W4A4 -> W3A3"):
        compress(dataclasses.replace(config, budget="W3A3"), digits, quiet)


def test_other_images_of_the_same_folder_are_refused(tmp_path, quiet, monkeypatch):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    (tmp_path / "run" / "pretrain").mkdir(parents=True)
    model.save(tmp_path / "run" / "pretrain" / "model.keras")
    run = dataclasses.replace(quiet, workdir=str(tmp_path / "run"))
    data = DataConfig(str(tmp_path / "photos"), image_size=8, labels="none")
    policy = BitwidthPolicy.uniform(model, 8, 8)

    found = Mended(quantize_model(model, policy), "none", {})
    monkeypatch.setattr(command, "correct", lambda *_: found)

    def corrected():
        given = policy, model, load_dataset(data), run, "none", 16
        return command.corrected("compress", *given)

    write_images(tmp_path / "photos", 20)
    assert corrected().finished and corrected().finished
    write_images(tmp_path / "photos", 20, seed=1)
    with pytest.raises(StageError, match="images: "):
        corrected()


@pytest.mark.slow
def test_a_flat_folder_on_the_command_line(float_file, tmp_path, repo_root):
    write_images(tmp_path / "flat", 60)
    words = [
        *(f"--model={float_file}", "--scaling=0..1", f"--images={tmp_path / 'flat'}"),
        *(f"--workdir={tmp_path / 'run'}", "--budget=W4A4,20kB"),
        *(f"--{name}={value}" for name, value in QUICK.items()),
    ]
    done = run_command(repo_root, *words)
    assert done.returncode == 0, done.stderr
    assert "without labels" in done.stdout
    result = json.loads((tmp_path / "run/compress/evaluation.json").read_text())
    assert result["accuracy"] is None and result["agreement"] is not None
    assert result["images"] == 12
    path = tmp_path / "run" / "compress" / "model.tflite"
    assert path.stat().st_size <= 20_000
    assert np.isfinite(
        TFLiteModel(path).predict(np.zeros((2, 8, 8, 1), np.float32))
    ).all()
    # What else is to be done takes the recorded flags.
    assert "without labels" not in done.stderr


def test_without_a_budget(float_file, digits, quiet, capsys):
    bare = dataclasses.replace(digits, labels="none")
    config = quick(float_file, correction="biases", output_kind="classes")
    path = compress(config, bare, quiet)
    said = capsys.readouterr().out
    assert "No --budget: every layer keeps 8 bits" in said
    policy = BitwidthPolicy.load(path.parent / "policy.json")
    assert {(b.weight_bits, b.activation_bits) for b in policy.values()} == {(8, 8)}
    done = json.loads((path.parent / "done.json").read_text())
    assert done["correction"] == "biases" and done["divergences"] == {}
    exported = json.loads((path.parent / "export_report.json").read_text())
    assert exported["outputs"][0]["known_from"] == "stated"
    measured = json.loads((path.parent / "evaluation.json").read_text())
    assert measured["identity"]["output_kind"] == "classes"
    # What tells how good the file is where there are no labels.
    model, file = keras.models.load_model(float_file), TFLiteModel(path)
    images = np.concatenate([x for x, *_ in load_dataset(digits).test()])
    pairs = [np.argmax(m.predict(images), -1) for m in (model, file)]
    assert measured["float_agreement"] == pytest.approx(np.mean(pairs[0] == pairs[1]))
    assert f"{100 * measured['float_agreement']:.2f} % as the float model" in said
    assert "pretrain: no labels to measure by" in said
    page = (path.parents[1] / "report/report.html").read_text()
    assert "As the float model" in page and ">as float</th>" in page
    assert ">accuracy</th>" not in page
    with pytest.raises(StageError, match="output_kind: classes -> None"):
        compress(dataclasses.replace(config, output_kind=None), bare, quiet)


@pytest.mark.slow
def test_fine_tuning_in_place_of_corrections(float_file, digits, quiet):
    path = compress(quick(float_file, budget="W4A4", epochs=1), digits, quiet)
    assert path.parent.name == "finetune"
    with pytest.raises(DataError, match="class of each image"):
        compress(
            quick(float_file, budget="W4A4", epochs=1),
            dataclasses.replace(digits, labels="none"),
            dataclasses.replace(quiet, workdir=quiet.workdir + "_bare"),
        )


def test_budgets_that_cannot_be_had(float_file, digits, quiet, tmp_path):
    with pytest.raises(BudgetError, match=r"The least is \d+B"):
        compress(quick(float_file, budget="100B"), digits, quiet)
    assert not list(tmp_path.rglob("policy.json"))
    with pytest.raises(BudgetError, match="Did you mean '60kB'"):
        quick(float_file, budget="60KB")
    with pytest.raises(ValueError, match="correction='bias'"):
        quick(float_file, correction="bias")


def test_meanings_of_the_output_that_do_not_fit(float_file, digits, quiet, tmp_path):
    with pytest.raises(TaskError, match="Did you mean 'classes'"):
        quick(float_file, output_kind="clases")
    for kind, said in (("binary", "that is binary"), ("numbers", "has targets")):
        with pytest.raises(ValueError, match=said):
            compress(quick(float_file, output_kind=kind), digits, quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_layers_without_an_integer_counterpart(digits, quiet, tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="gelu", name="curved")(inputs)
    x = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, x).save(tmp_path / "gelu.keras")
    config = quick(tmp_path / "gelu.keras", budget="W4A4")
    with pytest.raises(ExportError, match="'curved"):
        compress(config, digits, quiet)
    assert not (tmp_path / "run" / "search").exists()
    path = compress(dataclasses.replace(config, float_layers="allow"), digits, quiet)
    found = json.loads((path.parent / "export_report.json").read_text())
    assert found["float_parts"]


def test_images_that_cannot_be_used(float_file, digits, quiet, tmp_path, repo_root):
    def of(folder, **changes):
        options = {"dataset": str(tmp_path / folder), "labels": "none"} | changes
        data = dataclasses.replace(digits, **options)
        return compress(quick(float_file, budget="W4A4"), data, quiet)

    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold"):
        of("empty")
    write_images(tmp_path / "few", 5)
    with pytest.raises(InputError, match="8 images at least"):
        of("few")
    write_images(tmp_path / "bad", 20)
    (tmp_path / "bad" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png"):
        of("bad")
    for name in ("ant", "bee"):
        write_images(tmp_path / "two" / name, 20)
    with pytest.raises(DataError, match=r"2 classes.*labels=none"):
        of("two", labels=None)
    assert not (tmp_path / "run" / "search").exists()


@pytest.mark.slow
@pytest.mark.parametrize("labels", [None, "none"])
def test_another_scaling_that_fits_is_an_error(digits, quiet, tmp_path, labels):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, name="first")(inputs)
    norm = keras.layers.BatchNormalization(name="norm", momentum=0.5)
    x = keras.layers.ReLU()(norm(x))
    x = keras.layers.Dense(10)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    dataset = load_dataset(dataclasses.replace(digits, scaling="0..255"))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(dataset.train(0, 12), verbose=0)
    model.save(tmp_path / "pixels.keras")
    data = dataclasses.replace(digits, labels=labels)
    config = quick(tmp_path / "pixels.keras", budget="W4A4")
    with pytest.raises(StageError, match=r"with --scaling=0\.\.255"):
        compress(config, data, quiet)
    # The scaling of its training is fine.
    right = dataclasses.replace(data, scaling="0..255")
    assert compress(config, right, quiet).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scaling=0..1"], "neither --images nor --dataset"),
        (["--dataset=digits"], "no --scaling"),
        (["--images=nowhere", "--scaling=0..1"], "images='nowhere'"),
        (["--images=.", "--dataset=digits", "--scaling=0..1"], "named once"),
        (["--dataset=digits", "--scaling=0..2"], "scaling='0..2'"),
    ],
)
def test_what_is_missing(words, said, float_file, tmp_path, monkeypatch):
    from absl import flags

    from gmpq_tf.run.flags import define_flags, from_flags
    from gmpq_tf.run.run_config import RunConfig

    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setattr("gmpq_tf.run.flags.flags.FLAGS", flags.FLAGS)
    for config in (CompressConfig, DataConfig, RunConfig):
        define_flags(config)
    flags.FLAGS(["gmpq-compress", f"--model={float_file}", *words])
    run = RunConfig(workdir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=said):
        command.data_of(from_flags(CompressConfig), run)
