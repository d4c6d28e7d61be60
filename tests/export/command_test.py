import dataclasses
import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest

from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.export import command, tflite
from gmpq_tf.export.budgeted import beyond_budget
from gmpq_tf.export.command import (
    ExportConfig,
    export,
)
from gmpq_tf.export.data_facts import metadata, verification_images
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import read_metadata
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.transform import calibrate, quantize_model
from tests.data.detection_sets import voc_kit
from tests.export.nets import detector

DATA = DataConfig("digits", scaling="-1..1", batch_size=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a calibrated student, as fine-tuning leaves it."""
    workdir = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="first")(x)
    x = keras.layers.Conv2D(4, 3, activation="relu", name="middle")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="last")(x), name="small")
    policy = BitwidthPolicy.uniform(model, 4, 4)
    student = quantize_model(model, policy)
    calibrate(student, load_dataset(DATA).calibration(64))
    (workdir / "finetune").mkdir()
    student.save(workdir / "finetune" / "model.keras")
    policy.save(workdir / "finetune" / "policy.json")
    return WorkdirConfig(workdir=str(workdir))


def test_the_file_carries_scaling_classes_and_policy(run):
    path = export(ExportConfig(verify_images=64), DATA, run)
    stored = read_metadata(path)
    assert stored["input_scaling"] == {"kind": "-1..1", "mean": None, "std": None}
    assert stored["class_names"] == [str(number) for number in range(10)]
    assert stored["policy"]["layers"]["middle"] == [4, 4]
    report = json.loads((path.parent / "export_report.json").read_text())
    assert report["agreement"] >= 0.95


def test_images_without_labels_are_compared_and_not_graded(run, tmp_path):
    bare = dataclasses.replace(DATA, labels="none")
    path = export(ExportConfig(verify_images=64, latency_runs=0), bare, run)
    report = json.loads((path.parent / "export_report.json").read_text())
    assert report["images"] == 64 and report["agreement"] >= 0.95
    assert report["keras_accuracy"] is None and report["tflite_accuracy"] is None


def test_the_file_has_a_label_file_and_the_batch_asked_for(run):
    path = export(ExportConfig(verify_images=64, batch=2), DATA, run)
    labels = zipfile.ZipFile(path).read("labels.txt").decode()
    assert labels.split() == [str(number) for number in range(10)]
    assert TFLiteModel(path).batch == 2
    path = export(ExportConfig(verify_images=64, runtime="micro"), DATA, run)
    assert TFLiteModel(path).batch == 1
    with pytest.raises(ValueError, match="batch=0"):
        ExportConfig(batch=0)


def test_the_file_computes_what_the_model_does(run):
    path = export(ExportConfig(verify_images=64), DATA, run)
    student = keras.models.load_model(path.parent / "model.keras")
    images, _ = next(iter(load_dataset(DATA).test()))
    wanted = np.argmax(student(images, training=False), -1)
    found = np.argmax(TFLiteModel(path).predict(images.numpy(), 64), -1)
    assert np.mean(wanted == found) >= 0.95


def test_an_up_to_date_file_is_left_and_another_one_replaced(run):
    path = export(ExportConfig(verify_images=64), DATA, run)
    made = path.stat().st_mtime_ns
    export(ExportConfig(verify_images=64), DATA, run)
    assert path.stat().st_mtime_ns == made
    path.write_bytes(b"damaged")
    export(ExportConfig(verify_images=64), DATA, run)
    assert path.stat().st_size > 100


def test_a_missing_model_says_what_to_do(run):
    with pytest.raises(StageError, match=r"train\.finetune"):
        export(ExportConfig(name="uniform"), DATA, run)


def test_verification_uses_held_out_images():
    dataset = load_dataset(DATA)
    images = np.concatenate([x for x, _ in verification_images(dataset, 70)])
    held_out = np.concatenate([x for x, _ in dataset.validation()])
    np.testing.assert_array_equal(images, held_out[:70])
    assert verification_images(dataset, 0) is None


def test_metadata_is_json(run, tmp_path):
    folder = Path(run.workdir) / "finetune"
    assert json.loads(json.dumps(metadata(folder, load_dataset(DATA))))


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="verify_images=-1"):
        ExportConfig(verify_images=-1)
    with pytest.raises(ValueError, match="least_agreement=2"):
        ExportConfig(least_agreement=2)


def test_the_library_is_imported_from_where_it_was():
    for name in ("ExportConfig", "export", "main", "run"):
        assert getattr(tflite, name) is getattr(command, name)
    assert {"ExportError", "ExportReport", "export_tflite"} <= set(tflite.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        tflite.nothing  # noqa: B018


def test_a_file_above_the_budget_of_its_policy_is_said_to_be(tmp_path):
    limit = {"resource": "file_bytes", "limit": 60_000.0}
    for made_by, said in (
        ({}, False),
        ({"config": {"limits": [{"resource": "bit_ops", "limit": 1.0}]}}, False),
        ({"config": {"limits": [limit]}}, True),
    ):
        BitwidthPolicy("net", {"a": (4, 4)}, made_by).save(tmp_path / "policy.json")
        assert ("--storage=smallest" in beyond_budget(tmp_path, 60_001)) == said
        assert beyond_budget(tmp_path, 60_000) == ""


@pytest.mark.slow
def test_other_formats_are_written_from_the_same_folder(run):
    folder = Path(run.workdir) / "finetune"
    policy = BitwidthPolicy.load(folder / "policy.json")
    path = export(ExportConfig(format="litert_recipe", name="eight"), DATA, eight(run))
    rules = json.loads(path.read_text())
    assert {rule["operation"] for rule in rules} >= {"CONV_2D", "FULLY_CONNECTED"}
    assert path.with_name("model_float.tflite").stat().st_size > 100
    with pytest.raises(ValueError, match="middle W4/A4"):
        export(ExportConfig(format="litert_recipe"), DATA, run)
    if find_spec("tensorflow_model_optimization") is None:
        pytest.skip("the extra gmpq-tf[tfmot] is not installed")
    path = export(ExportConfig(format="tfmot"), DATA, run)
    from gmpq_tf.export.tfmot import load_model

    model = load_model(path)
    assert len(policy) == 3 and model.output_shape == (None, 10)
    made = path.stat().st_mtime_ns
    export(ExportConfig(format="tfmot"), DATA, run)
    assert path.stat().st_mtime_ns == made


def eight(run):
    """The same workdir with a folder of an 8-bit student, the widths LiteRT has."""
    folder = Path(run.workdir) / "eight"
    if not folder.exists():
        x = inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(4, 3, activation="relu", name="first")(x)
        x = keras.layers.Conv2D(4, 3, activation="relu", name="middle")(x)
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        model = keras.Model(inputs, keras.layers.Dense(10, name="last")(x))
        policy = BitwidthPolicy.uniform(model, 4, 8, pinned={})
        student = quantize_model(model, policy)
        calibrate(student, load_dataset(DATA).calibration(64))
        folder.mkdir()
        student.save(folder / "model.keras")
        policy.save(folder / "policy.json")
    return run


def test_a_detectors_file_returns_objects(tmp_path):
    """From a folder of images with XML files to a .tflite that names what it finds."""
    voc_kit(tmp_path / "data")
    data = DataConfig(str(tmp_path / "data"), image_size=32, batch_size=2)
    model = detector(classes=2)
    policy = BitwidthPolicy.uniform(model, 8, 8)
    student = quantize_model(model, policy)
    calibrate(student, load_dataset(data).calibration(4))
    folder = tmp_path / "run" / "finetune"
    folder.mkdir(parents=True)
    student.save(folder / "model.keras")
    policy.save(folder / "policy.json")
    run = WorkdirConfig(workdir=str(tmp_path / "run"))
    options = {"postprocess": True, "max_detections": 7, "score_threshold": 0.2}
    path = export(ExportConfig(verify_images=2, **options), data, run)
    report = json.loads((folder / "export_report.json").read_text())
    assert report["input_type"] == "uint8"
    assert report["postprocess"]["options"] == {
        "max_detections": 7,
        "iou_threshold": 0.45,
        "score_threshold": 0.2,
        "suppression": "per_class",
    }
    boxes, *_ = TFLiteModel(path).predict(np.zeros((1, 32, 32, 3), "uint8"))
    assert boxes.shape == (1, 7, 4)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"cat\ndog\n"
    raw = export(ExportConfig(verify_images=2), data, run)
    assert raw == path and path.read_bytes() != content
    assert len(TFLiteModel(path).outputs) == 2


def test_what_objects_are_returned_needs_that_some_are():
    with pytest.raises(ExportError, match="Give --postprocess too"):
        ExportConfig(max_detections=7)
    with pytest.raises(ExportError, match="iou_threshold=0"):
        ExportConfig(postprocess=True, iou_threshold=0.0)
