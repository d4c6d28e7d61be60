"""Exported files in the programs that users run them with.

MediaPipe and TFLite Micro live in an environment of their own (`make test` makes it in
.venv/clients; GMPQ_CLIENTS may name another), because MediaPipe and TFMOT want
different versions of absl-py.
"""

import ctypes
import json
import os
import re
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest

from gmpq_tf.cost_tables import cost_table
from gmpq_tf.detection.boxes import decode
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.memory_cost import peak_bytes, planned_bytes
from gmpq_tf.export.tflite.micro.arena import measure_arena
from gmpq_tf.export.tflite.postprocess import PostProcess, detector_head
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.models import load_model
from gmpq_tf.transform import snap_biases
from tests.export.nets import NETS, L, conv_bn, detector, images, student_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "clients"
NAMES = ["cat", "dög", "big bird", "x"]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Runs a script of tests/clients; returns the file that it writes."""
    folder = Path(os.environ.get("GMPQ_CLIENTS", ROOT / ".venv" / "clients")).absolute()
    python = folder / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no MediaPipe and TFLite Micro in {folder}; `make test` puts them")

    def run(script, model, arrays, suffix, *more):
        place = tmp_path_factory.mktemp("client")
        np.savez(place / "in.npz", *arrays)
        command = [python, SCRIPTS / script, model, place / "in.npz"]
        output = place / f"out{suffix}"
        command = [*command, output, *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return output

    return run


@pytest.fixture(scope="module")
def micro(client):
    """Runs a file in TFLite Micro."""

    def run(model, *arrays):
        return list(np.load(client("run_micro.py", model, arrays, ".npz")).values())

    return run


@pytest.fixture(scope="module")
def classify(client):
    """Scores that MediaPipe gives pixels, by class name."""
    for library in ("libEGL.so.1", "libGLESv2.so.2"):
        try:
            ctypes.CDLL(library)
        except OSError:
            pytest.skip(f"MediaPipe needs {library}: apt-get install libegl1 libgles2")

    def run(model, pixels):
        found = client("classify.py", model, [pixels], ".json")
        return json.loads(found.read_text(encoding="utf-8"))

    return run


def every_part():
    """Gates, products, pools, crops and groups, of which the other nets have none."""
    x = inputs = keras.Input((12, 12, 4), name="image")
    x = conv_bn(L.ZeroPadding2D(1)(x), 8, "stem", relu="relu6")
    gate = L.GlobalAveragePooling2D(keepdims=True)(x)
    gate = L.Conv2D(8, 1, activation="sigmoid", name="gate")(gate)
    x = conv_bn(L.Multiply()([x, gate]), 8, "groups", groups=4, padding="same")
    x = L.AveragePooling2D(2)(L.MaxPooling2D(3, strides=1, padding="same")(x))
    x = L.UpSampling2D(2)(L.Cropping2D(1)(x))
    x = L.DepthwiseConv2D(3, depth_multiplier=2, dilation_rate=2, name="deep")(x)
    x = L.Concatenate()([L.ReLU()(x), x])
    x = L.Dense(6, name="dense")(L.GlobalMaxPooling2D()(x))
    return keras.Model(inputs, L.Dense(1, activation="sigmoid", name="score")(x))


MICRO_NETS = {**NETS, "every_part": every_part}
del MICRO_NETS["branches"]  # averages beyond the edge


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize("net", MICRO_NETS)
def test_micro_computes_what_the_reference_kernels_do(tmp_path, micro, net, kind):
    student = student_of(MICRO_NETS[net](), 4, 4)
    snap_biases(student)
    path = tmp_path / "m.tflite"
    options = {"input_type": kind, "output_type": kind}
    report = export_tflite(student, path, runtime="micro", **options)
    assert report.runtime == "micro" and list(report.storage_bytes) == ["fast"]
    model = TFLiteModel(path, kernels="reference")
    assert model.batch == 1
    arrays = images(student, 4)
    arrays = arrays if isinstance(arrays, list) else [arrays]
    if kind == "int8":
        random = np.random.default_rng(0)
        arrays = [random.integers(-128, 128, a.shape).astype("int8") for a in arrays]
    want = model.stored(arrays)
    step = max(lower(student).output_steps)
    for have, wanted in zip(micro(path, *arrays), want, strict=True):
        np.testing.assert_allclose(
            have.astype("float32"), wanted, atol=1.01 if kind == "int8" else 2.01 * step
        )


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    "net",
    [*MICRO_NETS, "resnet8", pytest.param("mobilenet_v2", marks=pytest.mark.slow)],
)
def test_micro_plans_the_memory_that_a_budget_counts(tmp_path, client, net):
    """The head of its arena is that of activations; its planner comes to the least."""
    built_in = {"resnet8": ((32, 32, 3), 10), "mobilenet_v2": ((96, 96, 3), 10)}
    model = load_model(net, *built_in[net]) if net in built_in else MICRO_NETS[net]()
    student = student_of(model, 4, 4)
    content = lower(student, runtime="micro").content
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    text = client("arena_micro.py", path, [], ".txt").read_text()
    head = int(re.search(r"Arena allocation head (\d+) bytes", text)[1])
    assert head == peak_bytes(content) == planned_bytes(content)
    assert head <= cost_table("activation_bytes", model).constant <= 1.3 * head


def test_the_planner_of_micro_takes_more_than_is_alive_and_so_do_we(
    tmp_path, client, monkeypatch
):
    """Two small tensors between two large ones, as where VWW's network begins."""
    folder = Path(os.environ.get("GMPQ_CLIENTS", ROOT / ".venv" / "clients"))
    monkeypatch.setenv("GMPQ_CLIENTS", str(folder))
    x = inputs = keras.Input((24, 24, 3), name="image")
    x = L.Conv2D(8, 3, 2, padding="same", activation="relu")(x)
    x = L.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = L.Conv2D(16, 1, activation="relu")(x)
    x = L.DepthwiseConv2D(3, 2, padding="same", activation="relu")(x)
    student = student_of(keras.Model(inputs, L.Flatten()(x)), 8, 8)
    path = tmp_path / "m.tflite"
    kinds = {"input_type": "int8", "output_type": "int8"}
    report = export_tflite(student, path, runtime="micro", **kinds).micro
    assert report.arena.activations == report.activation_bytes
    assert report.activation_bytes > peak_bytes(path.read_bytes())
    assert report.arena.total > report.arena.activations
    text = path.with_suffix(".h").read_text()
    assert f"M_ARENA_BYTES {report.arena.total}" in text
    assert f"tflite-micro {report.arena.measured_with}" in text
    with pytest.raises(ExportError, match="must start on the file"):
        measure_arena(path.read_bytes()[:-3000])


def test_what_micro_cannot_do_is_refused_by_name(tmp_path):
    student, path = student_of(NETS["branches"](), 8, 8), tmp_path / "m.tflite"
    with pytest.raises(ExportError, match=r"layer='average_pooling2d\w*'.*valid"):
        export_tflite(student, path, runtime="micro")
    plain = student_of(NETS["plain"](), 2, 2)
    for storage in ("packed", "smallest"):
        with pytest.raises(ExportError, match=f"storage='{storage}'. Leave it out"):
            export_tflite(plain, path, runtime="micro", storage=storage)
    with pytest.raises(ExportError, match=r"litert, micro.*Did you mean 'micro'"):
        export_tflite(plain, path, runtime="mcro")
    for batch in (0, 1.5, True):
        with pytest.raises(ExportError, match=f"batch={batch}"):
            export_tflite(plain, path, batch=batch)
    assert not path.exists()


def pictures():
    inputs = keras.Input((16, 16, 3), name="image")
    x = L.Conv2D(8, 3, strides=2, activation="relu", name="a")(inputs)
    x = L.Dense(4, name="b")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, L.Softmax(name="scores")(x))


SCALINGS = {
    "0..255": (0.0, 1.0),
    "-1..1": (127.5, 127.5),
    "mean_std": ((120.0,) * 3, (60.0,) * 3),
}


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("scaling", "kind"),
    [(s, "float32") for s in SCALINGS] + [("0..255", "uint8"), ("-1..1", "uint8")],
)
def test_mediapipe_gives_the_scores_and_names(tmp_path, classify, scaling, kind):
    mean, std = map(np.array, SCALINGS[scaling])
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), "uint8")
    pixels[0], pixels[1] = 0, 255
    x = ((pixels - mean) / std).astype("float32")
    config = {"kind": scaling}
    if scaling == "mean_std":
        config |= {"mean": (mean / 255).tolist(), "std": (std / 255).tolist()}
    path = tmp_path / "m.tflite"
    options = {"input_type": kind, "output_type": kind, "verify_data": x}
    student = student_of(pictures(), 8, 8, x=x)
    export_tflite(student, path, class_names=NAMES, scaling=config, **options)
    want = TFLiteModel(path).predict(x if kind == "float32" else pixels)
    have = [[scores[name] for name in NAMES] for scores in classify(path, pixels)]
    # An input that falls on a half of its grid goes either way.
    step = 1 / 256 if kind == "uint8" else 2e-3
    np.testing.assert_allclose(have, want, atol=1.01 * step)


@pytest.mark.parametrize("bits", [8, 4])
def test_resnet8_decides_in_micro_as_in_litert(tmp_path, micro, shared_dir, bits):
    weights = shared_dir / "weights" / "mlperf_tiny_resnet8_cifar10.h5"
    if not weights.exists():
        pytest.skip("the weights of MLPerf Tiny's ResNet-8 are not here")
    x = cifar(shared_dir)
    student = student_of(
        keras.models.load_model(weights, compile=False), bits, bits, x=x
    )
    snap_biases(student, [x])
    path = tmp_path / "m.tflite"
    report = export_tflite(
        student, path, runtime="micro", verify_data=x, least_agreement=0.8
    )
    decisions = {
        kernels: TFLiteModel(path, kernels=kernels).predict(x).argmax(-1)
        for kernels in ("reference", "xnnpack")
    }
    (scores,) = micro(path, x)
    np.testing.assert_array_equal(scores.argmax(-1), decisions["reference"])
    # Kernels that round twice decide otherwise where two scores are close.
    equal = np.mean(scores.argmax(-1) == decisions["xnnpack"])
    assert equal >= {8: 0.99, 4: 0.9}[bits]
    assert report.agreement >= {8: 0.99, 4: 0.9}[bits]


def test_mlperfs_own_file_runs_in_micro(micro, shared_dir):
    path = shared_dir / "weights" / "mlperf_tiny_resnet8_cifar10_int8.tflite"
    if not path.exists():
        pytest.skip("the int8 file of MLPerf Tiny's ResNet-8 is not here")
    pixels = (cifar(shared_dir)[:50] - 128).astype("int8")
    (scores,) = micro(path, pixels)
    want = TFLiteModel(path, kernels="reference").predict(pixels)
    np.testing.assert_array_equal(scores.argmax(-1), want.argmax(-1))


def cifar(shared_dir):
    """The first 200 test images, pixels 0..255."""
    import tensorflow_datasets as tfds

    folder = shared_dir / "data" / "tfds"
    if not (folder / "cifar10").exists():
        pytest.skip("CIFAR-10 is not here")
    split = tfds.load("cifar10", split="test[:200]", data_dir=folder, batch_size=-1)
    return split["image"].numpy().astype("float32")


@pytest.fixture(scope="module")
def detect(client, classify):
    """Objects that MediaPipe finds in pixels: name, score, (left, top, wide, high)."""

    def run(model, pixels, score=0.0, shown="best"):
        found = client("detect.py", model, [pixels], ".json", str(score), shown)
        return json.loads(found.read_text(encoding="utf-8"))

    return run


def detector_of(scaling, background, end):
    """Pixels, what the model reads of them, and a student of a detector of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    pixels[0], pixels[1] = 0, 255
    x = {"0..1": pixels / 255, "-1..1": pixels / 127.5 - 1}[scaling].astype("float32")
    return pixels, x, student_of(detector(3, background, end), 8, 8, x=x)


def assert_same_place(place, box, side=32):
    """Whole pixels of a box (ymin, xmin, ymax, xmax), which begins in the image.

    Where it begins outside, its corner is moved and its sides stay.
    """
    top, left, bottom, right = np.asarray(box) * side
    want = (max(left, 0), max(top, 0), right - left, bottom - top)
    np.testing.assert_allclose(place, want, atol=1.01)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    ("scaling", "kind", "suppression"),
    [
        ("0..1", "uint8", "per_class"),
        ("-1..1", "uint8", "fast"),
        ("0..1", "float32", "fast"),
        ("-1..1", "float32", "per_class"),
    ],
)
def test_mediapipe_returns_the_objects_of_a_file(
    tmp_path, detect, scaling, kind, suppression
):
    pixels, x, student = detector_of(scaling, True, None)
    path, names = tmp_path / "m.tflite", NAMES[:3]
    export_tflite(
        student,
        path,
        verify_data=x,
        class_names=names,
        scaling=scaling,
        input_type=kind,
        latency_runs=0,
        postprocess=PostProcess(15, 0.45, 0.3, suppression),
    )
    model = TFLiteModel(path)
    boxes, classes, scores, counts = model.predict(pixels if kind == "uint8" else x)
    inside = outside = 0
    for index, found in enumerate(detect(path, pixels)):
        assert len(found) == counts[index]
        for row, (name, score, place) in enumerate(found):
            # Pixels that fall on halves of the grid go either way in float.
            assert score == pytest.approx(
                scores[index, row], abs=1e-6 if kind == "uint8" else 5e-3
            )
            box = boxes[index, row]
            if kind == "uint8":
                assert name == names[int(classes[index, row])]
                assert_same_place(place, box)
                inside += box.min() >= 0 and box.max() <= 1
                outside += box.min() < 0
    assert inside >= (10 if kind == "uint8" else 0)
    assert outside >= (5 if kind == "uint8" else 0)


def test_mediapipe_folds_boxes_of_the_same_pixels_into_one_object(tmp_path, detect):
    """So it may count less than the file, and nothing is lost: it has all classes."""
    pixels, x, student = detector_of("0..1", True, None)
    path, names = tmp_path / "m.tflite", NAMES[:3]
    export_tflite(
        student,
        path,
        verify_data=x,
        class_names=names,
        scaling="0..1",
        latency_runs=0,
        postprocess=PostProcess(40, 0.45, 0.05),
    )
    _, classes, scores, counts = TFLiteModel(path).predict(pixels)
    folded = 0
    for index, found in enumerate(detect(path, pixels, 0.0, "all")):
        count = int(counts[index])
        wanted = [
            (names[int(number)], float(score))
            for number, score in zip(classes[index], scores[index], strict=True)
        ]
        told = [tuple(pair) for each in found for pair in each[3]]
        assert sorted(name for name, _ in told) == sorted(n for n, _ in wanted[:count])
        np.testing.assert_allclose(
            sorted(score for _, score in told),
            sorted(score for _, score in wanted[:count]),
            atol=1e-6,
        )
        assert len({tuple(each[2]) for each in found}) == len(found)
        folded += count - len(found)
    assert folded > 0


@pytest.mark.parametrize("end", [None, "sigmoid"])
def test_mediapipe_decodes_raw_outputs_without_background(tmp_path, detect, end):
    pixels, x, student = detector_of("0..1", False, end)
    path, names = tmp_path / "m.tflite", NAMES[:3]
    report = export_tflite(
        student, path, verify_data=x, class_names=names, scaling="0..1", latency_runs=0
    )
    assert report.input_type == "uint8"
    offsets, scores = TFLiteModel(path).predict(pixels)
    scores = scores if end else 1 / (1 + np.exp(-scores.astype("float64")))
    centers = detector_head(student, names).centers
    boxes = decode(offsets, centers, (0.1, 0.2))
    least, total = 0.56, 0
    for index, found in enumerate(detect(path, pixels, least)):
        best = scores[index].max(-1)
        passing = np.flatnonzero(best >= least)
        assert (len(found) > 0) == (len(passing) > 0)
        if found:
            assert found[0][1] == pytest.approx(best.max(), abs=1e-6)
        for name, score, place in found:
            near = [i for i in passing if abs(best[i] - score) < 1e-6]
            assert name in {names[scores[index, i].argmax()] for i in near}
            whole = [i for i in near if boxes[index, i].min() >= 0]
            whole = [i for i in whole if boxes[index, i].max() <= 1]
            wanted = [
                (32 * b[[1, 0, 3, 2]] - [0, 0, *(32 * b[[1, 0]])])
                for b in boxes[index, whole]
            ]
            gaps = [np.abs(np.array(place) - w).max() for w in wanted]
            total += bool(gaps) and min(gaps) <= 1.01
    assert total >= 5


def test_a_background_would_be_a_class_to_mediapipe_so_raw_files_say_nothing(tmp_path):
    _, x, student = detector_of("0..1", True, None)
    path = tmp_path / "m.tflite"
    export_tflite(student, path, verify_data=x, class_names=NAMES[:3], latency_runs=0)
    content = path.read_bytes()
    assert b"DETECTOR_METADATA" not in content and b"labels.txt" not in content
