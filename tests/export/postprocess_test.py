"""Files that return objects: the runtime's operator against NumPy."""

import json

import keras
import numpy as np
import pytest

from gmpq_tf.data import InputScaling
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.flatbuffer import FileBuilder, operator_name, read_model
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.objects import (
    compare_postprocess,
    found_objects,
    reference,
    returns_objects,
)
from gmpq_tf.export.tflite.postprocess import (
    OUTPUTS,
    DetectorHead,
    PostProcess,
    add_postprocess,
    detector_head,
)
from gmpq_tf.export.tflite.runtime import TFLiteModel
from tests.export.nets import L, detector, student_of

NAMES = ["cat", "dög", "big bird"]


def head_of(count, classes=3, curve="softmax", ends=True, seed=0):
    random = np.random.default_rng(seed)
    centers = random.uniform(0.05, 0.9, (count, 4)).astype("float32")
    return DetectorHead((0, 1), centers, (10.0, 10.0, 5.0, 5.0), classes, curve, ends)


def file_of(head, options, columns):
    """The operator alone."""
    file, count = FileBuilder(), len(head.centers)
    offsets = file.tensor("offsets", [1, count, 4], "FLOAT32")
    scores = file.tensor("scores", [1, count, columns], "FLOAT32")
    outputs = add_postprocess(file, [offsets, scores], head, options)
    return file.finish({"offsets": offsets, "scores": scores}, outputs, {})


def run(content, offsets, scores):
    model = TFLiteModel(content)
    boxes, classes, values, count = model.predict([offsets[None], scores[None]])
    return boxes[0], classes[0], values[0], int(count[0])


OPTIONS = [
    PostProcess(),
    PostProcess(suppression="fast"),
    PostProcess(max_detections=3),
    PostProcess(max_detections=3, suppression="fast"),
    PostProcess(10, 0.2, 0.6),
    PostProcess(200, 1.0, 0.0),
    PostProcess(50, 0.3, 0.5, "fast"),
]


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_operator_computes_what_the_reference_does(options, background):
    for seed, kind in enumerate(["even", "ties", "far", "few"]):
        random = np.random.default_rng(seed)
        head = head_of(4 if kind == "few" else 60, seed=seed)
        count = len(head.centers)
        offsets = random.normal(0, 5 if kind == "far" else 1, (count, 4))
        scores = random.random((count, 3 + background))
        if kind == "ties":
            offsets, scores = np.round(offsets), np.round(scores, 1)
        offsets, scores = offsets.astype("float32"), scores.astype("float32")
        have = run(file_of(head, options, 3 + background), offsets, scores)
        want = reference(offsets, scores, head, options)
        assert have[3] == want[3] <= options.max_detections
        n = want[3]  # what stands in the rows after them is not said
        np.testing.assert_array_equal(have[1][:n], want[1][:n])
        np.testing.assert_array_equal(have[2][:n], want[2][:n])
        np.testing.assert_allclose(have[0][:n], want[0][:n], rtol=1e-5, atol=1e-6)


def test_where_nothing_is_found_all_is_zero():
    head, options = head_of(20), PostProcess(5, 0.5, 0.9)
    scores = np.full((20, 4), 0.25, "float32")
    have = run(file_of(head, options, 4), np.zeros((20, 4), "float32"), scores)
    want = reference(np.zeros((20, 4), "float32"), scores, head, options)
    for part in (*have, *want):
        assert not np.any(part)


@pytest.mark.parametrize("curve", ["softmax", "sigmoid"])
def test_logits_become_probabilities_first(curve):
    random, options = np.random.default_rng(0), PostProcess(40, 0.9, 0.1)
    columns = 3 + (curve == "softmax")
    head = head_of(30, curve=curve, ends=False)
    logits = random.normal(0, 3, (30, columns)).astype("float32")
    offsets = random.normal(0, 1, (30, 4)).astype("float32")
    function = keras.ops.softmax if curve == "softmax" else keras.ops.sigmoid
    want = reference(offsets, np.asarray(function(logits)), head, options)
    have = run(file_of(head, options, columns), offsets, logits)
    assert have[3] == want[3] > 3
    for one, other in zip(have[:3], want[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


HEADS = [(True, None), (True, "softmax"), (False, None), (False, "sigmoid")]


@pytest.fixture(scope="module")
def students():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), "uint8")
    pixels[0], pixels[1] = 0, 255
    x = (pixels / 255).astype("float32")
    return (
        x,
        pixels,
        {
            (background, end): student_of(detector(3, background, end), 8, 8, x=x)
            for background, end in HEADS
        },
    )


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("head", "storage"), [*((h, "fast") for h in HEADS), (HEADS[0], "smallest")]
)
def test_a_file_returns_the_objects_of_the_models_outputs(
    tmp_path, students, head, storage
):
    x, pixels, models = students
    student, path = models[head], tmp_path / "m.tflite"
    options = PostProcess(20, 0.5, 0.3)
    report = export_tflite(
        student,
        path,
        storage=storage,
        verify_data=x,
        class_names=NAMES,
        scaling="0..1",
        postprocess=options,
        latency_runs=1,
    )
    assert report.postprocess.options == options and report.postprocess.images == 6
    assert report.postprocess.max_error <= 1e-6 and report.postprocess.detections > 5
    assert report.file_bytes == path.stat().st_size == report.storage_bytes[storage]
    assert report.input_type == "uint8"
    written = json.loads((tmp_path / "export_report.json").read_text())
    assert written["postprocess"]["options"]["max_detections"] == 20
    model = TFLiteModel(path)
    assert model.batch == 1 and [d["name"] for d in model.outputs] == list(OUTPUTS)
    found = model.predict(pixels)
    assert [a.shape for a in found] == [(6, 20, 4), (6, 20), (6, 20), (6,)]
    assert returns_objects(model)
    assert detector_head(student, NAMES).ends == (head[1] is not None)
    objects = found_objects(found)
    # From what Keras says of the same images.
    outputs = student.predict_on_batch(x)
    ends = detector_head(student, NAMES)
    scores = np.asarray(outputs["scores"], "float32")
    if head[1] is None:
        curve = keras.ops.softmax if head[0] else keras.ops.sigmoid
        scores = np.asarray(curve(scores))
    for index in range(6):
        want = reference(
            np.asarray(outputs["boxes"][index]), scores[index], ends, options
        )
        assert int(found[3][index]) == want[3]
        np.testing.assert_allclose(found[2][index], want[2], atol=1e-6)
        np.testing.assert_allclose(found[0][index], want[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[1][index], want[1])
        boxes, classes, _ = objects.of_image(index)
        np.testing.assert_array_equal(classes, want[1][: want[3]])
        np.testing.assert_allclose(
            boxes, np.clip(want[0][: want[3]], 0, 1), rtol=1e-5, atol=1e-5
        )


def test_a_background_among_the_names_is_refused():
    """As many names as scores would make sigmoids of a softmax's logits."""
    with pytest.raises(ExportError, match="without background"):
        detector_head(detector(3), ["Background", *NAMES])
    assert detector_head(detector(3), NAMES).curve == "softmax"


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    ("background", "end", "names"), [(True, None, ["cell"]), (False, None, [])]
)
def test_a_detector_of_one_class(tmp_path, students, background, end, names):
    x, pixels, _ = students
    student = student_of(detector(1, background, end), 8, 8, x=x)
    report = export_tflite(
        student,
        tmp_path / "m.tflite",
        verify_data=x,
        class_names=names,
        scaling="0..1",
        postprocess=PostProcess(20, 0.5, 0.3),
        latency_runs=0,
    )
    assert report.postprocess.max_error <= 1e-6 and report.postprocess.detections > 5
    _, classes, scores, counts = TFLiteModel(tmp_path / "m.tflite").predict(pixels)
    logits = np.asarray(student.predict_on_batch(x)["scores"])
    curve = keras.ops.softmax if background else keras.ops.sigmoid
    best = np.asarray(curve(logits))[..., -1].max(axis=1)
    np.testing.assert_allclose(scores[:, 0], best, atol=1e-6)
    assert (counts > 0).all() and not classes.any()


def test_the_file_is_the_raw_one_and_the_operator(students):
    _, _, models = students
    student = models[True, None]
    head = detector_head(student)
    raw = read_model(lower(student, batch=1, head=head).content)
    content = lower(student, batch=1, head=head, postprocess=PostProcess()).content
    model = read_model(content)
    names = [operator_name(model, o) for o in model.subgraphs[0].operators]
    plain = [operator_name(raw, o) for o in raw.subgraphs[0].operators]
    assert names == [*plain, "SOFTMAX", "CUSTOM"]
    assert model.operatorCodes[-1].customCode == b"TFLite_Detection_PostProcess"
    assert (
        content == lower(student, batch=1, head=head, postprocess=PostProcess()).content
    )


def test_a_file_that_returns_others_is_refused(students):
    """Another default box in the file than in the model."""
    x, _, models = students
    student, options = models[True, None], PostProcess(20, 0.5, 0.3)
    head = detector_head(student)
    raw = lower(student, batch=1, head=head).content
    other = DetectorHead(
        head.places, head.centers + 0.01, *list(vars(head).values())[2:]
    )
    for content_of, judged_by in ((other, head), (head, other)):
        content = lower(student, batch=1, head=content_of, postprocess=options).content
        with pytest.raises(ExportError, match=r"detections of a file.*off on 6 images"):
            compare_postprocess(content, raw, judged_by, options, [[x]])
    less = PostProcess(20, 0.5, 0.35)
    content = lower(student, batch=1, head=head, postprocess=less).content
    with pytest.raises(ExportError, match="Nothing was written"):
        compare_postprocess(content, raw, head, options, [[x]])


def test_what_cannot_return_objects_is_refused(tmp_path, students):
    x, _, models = students
    student, path = models[True, None], tmp_path / "m.tflite"

    def refused(match, model=student, **options):
        with pytest.raises(ExportError, match=match):
            export_tflite(model, path, **{"postprocess": True, **options})
        assert not path.exists()

    refused("output_type='int8'", output_type="int8")
    refused("batch=4", batch=4)
    refused("runtime='micro'", runtime="micro")
    refused("PostProcess. Received: postprocess='yes'", postprocess="yes")
    refused("max_detections=0", postprocess={"max_detections": 0})
    refused("iou_threshold=0", postprocess={"iou_threshold": 0})
    refused("iou_threshold=nan", postprocess={"iou_threshold": float("nan")})
    refused("score_threshold=2", postprocess={"score_threshold": 2})
    refused("suppression='slow'", postprocess={"suppression": "slow"})
    refused("3 classes needs as many names.*2 class_names", class_names=["a", "b"])
    refused("topk", postprocess={"topk": 3})
    x = keras.Input((8, 8, 3))
    y = L.Dense(3, name="scores")(L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(x)))
    refused("no default boxes", student_of(keras.Model(x, y), 8, 8))
    head = detector()
    more = keras.Model(
        head.inputs, {**head.output, "more": L.Flatten()(head.output["scores"])}
    )
    refused("3 outputs", student_of(more, 8, 8))
    renamed = {"offsets": head.output["boxes"], "scores": head.output["scores"]}
    renamed = keras.Model(head.inputs, renamed)
    refused("'boxes' and 'scores'.*'offsets'", student_of(renamed, 8, 8))


def test_pixels_go_in_where_the_grid_is_theirs(tmp_path, students):
    x, _, models = students
    student, path = models[True, None], tmp_path / "m.tflite"
    options = {"verify_data": x, "latency_runs": 0}
    kinds = {
        "uint8": {"scaling": InputScaling("0..1")},
        "float32": {},  # nobody knows what the input is
        "int8": {"scaling": "0..1", "input_type": "int8"},
    }
    for kind, given in kinds.items():
        assert export_tflite(student, path, **options, **given).input_type == kind
    report = export_tflite(student, path, **options, scaling="-1..1")
    assert report.input_type == "float32"  # its codes are not those pixels
