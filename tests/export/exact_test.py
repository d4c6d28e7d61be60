"""What an export demands of every integer, and what it says where one differs."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.export.command import ExportConfig
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.grids import Grid, Value
from gmpq_tf.export.tflite import export_tflite, exporter, integer_twin
from gmpq_tf.export.tflite.flatbuffer import read_model
from gmpq_tf.export.tflite.integer_graph import Check
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.twin import program
from gmpq_tf.export.tflite.twin.run import FileTwin
from gmpq_tf.export.tflite.verify import codes_equal, deviation_of
from tests.export import nets
from tests.export.random_models import random_images

IMAGES, CLASSES = 40, 3


def ready(name="residual", bits=(8, 8)):
    """A calibrated student, and images with the decisions of its file as labels."""
    model = nets.randomize(nets.NETS[name](), 1)
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, *bits))
    x = random_images(model, IMAGES, 3)
    gmpq.calibrate(student, [(x,)])
    gmpq.snap_biases(student, [(x,)])
    return student, x


def one_more(row):
    """A row of OPERATORS that is off by one everywhere."""

    def prepare(op):
        compute = row(op)
        return lambda *values: compute(*values) + 1

    return prepare


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("storage", ["fast", "packed", "smallest"])
@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
def test_every_integer_and_every_output_is_the_twins(tmp_path, kind, storage):
    student, x = ready(bits=(2, 4))
    scores = integer_twin(student).predict(x, verbose=0)
    labels = scores.argmax(-1)
    labels[:10] = (labels[:10] + 1) % scores.shape[-1]
    report = export_tflite(
        student,
        tmp_path / "m.tflite",
        storage,
        input_type=kind,
        output_type=kind,
        verify_data=x,
        labels=labels,
        latency_runs=0,
    )
    assert report.verify == "exact"
    assert report.twin.tensors > 5 and report.twin.codes > 1000
    assert (report.twin.off, report.twin.names, report.twin.unknown) == (0, (), ())
    assert report.twin_agreement == 1.0
    assert report.twin_accuracy == report.tflite_accuracy == 0.75
    assert report.outputs[0].twin_max_error <= 1e-6
    assert "100.00 % with its integer twin" in str(report.outputs[0])
    written = json.loads((tmp_path / "export_report.json").read_text())
    assert written["twin"]["codes"] == report.twin.codes
    assert written["verify"] == "exact"


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 16])
def test_a_file_of_a_fixed_batch(tmp_path, batch):
    student, x = ready()
    options = {"verify_data": x, "batch": batch, "latency_runs": 0}
    report = export_tflite(student, tmp_path / "m.tflite", **options)
    assert (report.twin.off, report.twin_agreement) == (0, 1.0)
    have = TFLiteModel(tmp_path / "m.tflite").predict(x)
    want = FileTwin((tmp_path / "m.tflite").read_bytes()).predict([x])
    np.testing.assert_allclose(want[0], have, rtol=0, atol=1e-6)


def test_a_kernel_that_rounds_otherwise_is_named_and_there_is_a_way_out(
    tmp_path, monkeypatch
):
    student, x = ready()
    wrong = one_more(program.OPERATORS["CONV_2D"])
    monkeypatch.setitem(program.OPERATORS, "CONV_2D", wrong)
    path, options = tmp_path / "m.tflite", {"verify_data": x, "latency_runs": 0}
    with pytest.raises(ExportError) as refused:
        export_tflite(student, path, **options)
    said = str(refused.value)
    for part in (
        r" that differ, by 1 step(s) at the most, in ",
        "(CONV_2D) with ",
        "XNNPACK on ",
        "ai-edge-litert ",
        "--verify=agreement",
    ):
        assert part in said
    assert not list(tmp_path.iterdir())
    report = export_tflite(student, path, verify="agreement", **options)
    assert (report.verify, report.twin) == ("agreement", None)
    assert report.outputs[0].twin_max_error is None


def test_an_operator_that_the_twin_lacks_is_no_dead_end(tmp_path, monkeypatch):
    student, x = ready()
    monkeypatch.delitem(program.OPERATORS, "CONV_2D")
    path, options = tmp_path / "m.tflite", {"verify_data": x, "latency_runs": 0}
    with pytest.raises(ExportError, match=r"CONV_2D that makes .*--verify=agreement"):
        export_tflite(student, path, **options)
    assert not list(tmp_path.iterdir())
    assert export_tflite(student, path, verify="agreement", **options).twin is None


def test_outputs_are_compared_on_every_image(tmp_path, monkeypatch):
    """Also beyond those of which all tensors are."""
    student, x = ready()
    predict = FileTwin.predict

    def changed(self, arrays):
        found = predict(self, arrays)
        found[0][-1] += 1e-3
        return found

    monkeypatch.setattr(FileTwin, "predict", changed)
    with pytest.raises(ExportError, match=r"off by 0\.001 on 40 images.*XNNPACK on"):
        export_tflite(student, tmp_path / "m.tflite", verify_data=x, latency_runs=0)


def test_micro_rounds_twice_and_is_judged_by_decisions(tmp_path):
    student, x = ready()
    path, options = tmp_path / "m.tflite", {"verify_data": x, "runtime": "micro"}
    assert export_tflite(student, path, **options).verify == "agreement"
    with pytest.raises(ExportError, match=r"verify must be agreement .*verify='exact'"):
        export_tflite(student, path, verify="exact", **options)


def test_other_words_are_refused(tmp_path):
    student, _ = ready()
    with pytest.raises(ExportError, match=r"verify='exakt'.*exact"):
        export_tflite(student, tmp_path / "m.tflite", verify="exakt")
    assert ExportConfig(verify="agreement").verify == "agreement"


def test_a_keras_model_that_decides_otherwise_is_warned_of(tmp_path, monkeypatch):
    """The file is right; the student in float is not its file."""
    compare = exporter.compare_outputs
    monkeypatch.setattr(
        exporter,
        "compare_outputs",
        lambda *args: replace(compare(*args), agreement=0.6, ties=0.0),
    )
    student, x = ready()
    path, options = tmp_path / "m.tflite", {"verify_data": x, "latency_runs": 0}
    with pytest.warns(UserWarning, match=r"right to the last integer.*agreement=60.0%"):
        report = export_tflite(student, path, **options)
    assert (report.agreement, report.twin_agreement) == (0.6, 1.0)
    with pytest.raises(ExportError, match=r"agreement=60\.0%"):
        export_tflite(student, tmp_path / "n.tflite", least_agreement=0.7, **options)
    assert not (tmp_path / "n.tflite").exists()


@pytest.mark.parametrize("slack", [0.0, 0.1])
def test_no_code_may_be_farther_than_one_rounding_leaves_it(slack):
    """However few they are: one of a thousand."""
    check = Check("a", "Conv2D", 0, Value(0, Grid(0.5, 0, 100), 0), slack)
    values = np.full(1000, 10.5, "float32")  # midway: 21 steps, or 20 and 22 wrong
    for place, wrong in ((21.5, False), (21.45, False), (21.3, True), (22.6, True)):
        values[7] = place * 0.5
        stored: np.ndarray = np.full(1000, 21, "int8")
        stored[7] = 22 if place < 22 else 24
        found = deviation_of(check, values, stored)
        explained = abs(stored[7] - place) - 0.5 - slack
        assert found.beyond == pytest.approx(max(explained, 0), abs=1e-6)
        assert found.wrong == (explained > 1 / 64)
        assert found.wrong == (wrong or (place == 21.45 and not slack))
        assert not found.excessive  # one in a thousand was let pass


@pytest.mark.parametrize("storage", ["fast", "smallest"])
def test_a_kernel_or_bias_that_differs_by_one_bit_is_seen(storage):
    lowered = lower(ready(bits=(2, 8))[0], storage)
    for kernel, tensor in product(lowered.kernels, ("tensor", "bias")):
        model = read_model(lowered.content)
        assert codes_equal(model, kernel)
        buffer = model.subgraphs[0].tensors[getattr(kernel, tensor)].buffer
        data = np.array(model.buffers[buffer].data, np.uint8)
        data[0] ^= 1
        model.buffers[buffer].data = data
        assert not codes_equal(model, kernel)


def test_layers_are_held_to_it(tmp_path, monkeypatch):
    """A lowering that moves one code in a thousand is refused at the layer."""
    deviations = exporter.mean_deviations

    def moved(lowered, batches):
        found = deviations(lowered, batches)
        return [found[0], replace(found[1], off=0.001, beyond=0.2), *found[2:]]

    monkeypatch.setattr(exporter, "mean_deviations", moved)
    student, x = ready()
    path, options = tmp_path / "m.tflite", {"verify_data": x, "latency_runs": 0}
    with pytest.raises(ExportError, match=r"0\.2 steps farther .*--verify=agreement"):
        export_tflite(student, path, **options)
    export_tflite(student, path, verify="agreement", **options)
