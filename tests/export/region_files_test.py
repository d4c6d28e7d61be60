"""A two-stage detector as two files, and what joins them."""

import json

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.budget import BudgetError
from gmpq_tf.compression import whole
from gmpq_tf.cost_tables import cost_table
from gmpq_tf.export.tflite import (
    ExportError,
    RegionDetector,
    export_tflite,
    integer_twin,
    read_metadata,
)
from gmpq_tf.export.tflite.region_detector import open_tflite
from gmpq_tf.export.tflite.region_files import head_path
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.models import build_model

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, 64, 64, 3), np.float32)


@pytest.fixture(scope="module")
def student(images):
    keras.utils.set_random_seed(0)
    name = "faster_rcnn_resnet18"
    model = build_model(name, (64, 64, 3), 2, alpha=0.25, regions=5)
    made = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(made, images)
    gmpq.snap_biases(made)
    return made


@pytest.fixture(scope="module")
def exported(student, images, tmp_path_factory, no_latency):
    path = tmp_path_factory.mktemp("files") / "model.tflite"
    exporter, measure = no_latency
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "measure_latency", measure)
        report = export_tflite(
            student,
            path,
            storage="smallest",
            verify_data=iter([images[:2], images[2:]]),
            class_names=CLASSES,
            scaling="0..1",
            latency_runs=1,
        )
    return path, report


@pytest.mark.slow
def test_both_files_are_exact(exported, student):
    path, report = exported
    files = sorted(p.name for p in path.parent.iterdir())
    assert files == ["export_report.json", "model.tflite", "model_head.tflite"]
    assert report.twin.off == 0 and report.twin.codes > 100_000
    assert report.agreement == 1.0 and report.data == "given"
    assert report.images == 3 and report.input_type == "uint8"
    names = {layer.name for layer in report.layers}
    assert {"stem_conv", "rpn_conv", "roi_boxes"} <= names and len(names) == 25
    outputs = [output.name for output in report.outputs]
    assert outputs == ["features", "rpn_boxes", "rpn_scores", "boxes", "scores"]
    size = path.stat().st_size + head_path(path).stat().st_size
    assert report.file_bytes == size == report.storage_bytes["smallest"]
    assert set(report.latency_ms) >= {"fast", "smallest"}
    saved = json.loads((path.parent / "export_report.json").read_text())
    assert len(saved["layers"]) == 25 and saved["file_bytes"] == size
    kinds = TFLiteModel(path), TFLiteModel(head_path(path))
    assert kinds[0].inputs[0]["dtype"] == np.uint8
    assert {d["dtype"] for d in kinds[0].outputs} == {np.int8}
    assert kinds[1].inputs[0]["dtype"] == np.int8


@pytest.mark.slow
def test_the_joined_files_say_what_keras_and_the_twin_say(exported, student, images):
    detector = open_tflite(exported[0])
    assert isinstance(detector, RegionDetector)
    assert detector.class_names == CLASSES
    found = detector.predict(images)
    twin, wanted = integer_twin(student), student.predict_on_batch(images)
    exact = twin.predict_on_batch(images)
    assert list(exact) == list(wanted)
    for name, values in zip(("objects", "rpn_boxes", "rpn_scores"), found, strict=True):
        np.testing.assert_allclose(values, exact[name], atol=1e-6)
        np.testing.assert_allclose(values, wanted[name], atol=1e-6)
    alone = [detector.predict(image[None])[0][0] for image in images]
    np.testing.assert_array_equal(alone, found[0])
    objects = detector.find(images, score_threshold=0.0, max_detections=7)
    assert objects.boxes.shape == (3, 7, 4) and objects.counts.min() > 0
    pixels = np.round(255 * images).astype(np.uint8)
    floats = (pixels / np.float32(255)).astype("float32")
    np.testing.assert_array_equal(
        detector.predict(pixels)[0], detector.predict(floats)[0]
    )


@pytest.mark.slow
def test_files_of_two_exports_are_not_joined(exported, student, images, tmp_path):
    path, _ = exported
    for each in (path, head_path(path)):
        (tmp_path / each.name).write_bytes(each.read_bytes())
    RegionDetector(tmp_path / path.name)
    other = tmp_path / "other.tflite"
    export_tflite(student, other, verify_data=images, latency_runs=0)
    (tmp_path / head_path(path).name).write_bytes(head_path(other).read_bytes())
    with pytest.raises(ExportError, match="must be of one export"):
        RegionDetector(tmp_path / path.name)
    head_path(other).unlink()
    with pytest.raises(ExportError, match="other_head"):
        RegionDetector(other)
    with pytest.raises(ExportError, match="the first of the two"):
        RegionDetector(head_path(path))


def test_names_in_the_file_lead_nowhere(exported, tmp_path, monkeypatch):
    path, _ = exported
    known = read_metadata(path)
    known["regions"]["head"] = "../model_head.tflite"
    module = "gmpq_tf.export.tflite.region_detector.read_metadata"
    monkeypatch.setattr(module, lambda _: known)
    with pytest.raises(ExportError, match="must lie beside the first"):
        RegionDetector(path)


@pytest.mark.parametrize(
    "options",
    [
        {"postprocess": True},
        {"runtime": "micro"},
        {"float_layers": "allow"},
        {"output_type": "int8"},
        {"output_kinds": "numbers"},
    ],
)
def test_what_takes_one_file_is_refused(student, tmp_path, options):
    name = next(iter(options))
    with pytest.raises(ExportError, match=f"Received: {name}="):
        export_tflite(student, tmp_path / "model.tflite", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resource", ["file_bytes", "activation_bytes"])
def test_budgets_of_one_file_are_refused(student, resource):
    with pytest.raises(BudgetError, match=r"becomes two.*weight_bytes=60kB"):
        cost_table(resource, student)


@pytest.mark.slow
def test_without_images_random_ones_are_compared(student, tmp_path):
    report = export_tflite(student, tmp_path / "m.tflite", latency_runs=0, batch=2)
    assert report.data == "random" and report.twin.off == 0
    assert RegionDetector(tmp_path / "m.tflite").first.batch == 2


@pytest.mark.parametrize(
    "options", [{"float_layers": "allow"}, {"output_kinds": "numbers"}]
)
def test_compress_refuses_what_takes_one_file_before_any_work(
    tmp_path, monkeypatch, options
):
    for work in ("SearchData", "search_policy", "make_student"):
        monkeypatch.setattr(whole, work, lambda *_, **__: pytest.fail("too late"))
    model = build_model("faster_rcnn_resnet18", (64, 64, 3), 2, alpha=0.0625, regions=5)
    name = next(iter(options))
    with pytest.raises(ExportError, match=f"Received: {name}="):
        gmpq.compress(model, [], "20kB", tmp_path / "model.tflite", **options)
