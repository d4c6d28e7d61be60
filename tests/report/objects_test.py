"""Boxes and precision-recall curves of a report, against `MeanAP` and by hand."""

import json
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from gmpq_tf.detection import MeanAP
from gmpq_tf.detection.boxes import iou
from gmpq_tf.models import build_model
from gmpq_tf.report import ReportError, write_figures, write_report
from gmpq_tf.report.object_plots import (
    STYLES,
    boxes_of,
    overlaps,
    plot_objects,
    plot_precision_recall,
)
from gmpq_tf.report.objects import (
    CURVES,
    OBJECTS,
    Curve,
    Found,
    ShownObjects,
    curves_arrays,
    objects_arrays,
    read_curves,
    read_objects,
)
from gmpq_tf.train.measure import measure_both
from gmpq_tf.train.show_objects import curves_of
from tests.detection.mean_ap_test import BELOW, LEFT, RIGHT, random_images

NAMES = ("$cat_$", "big $dog_")


def objects(*rows, most=3):
    """One image's (box, class, score) rows, padded."""
    boxes, classes = np.zeros((1, most, 4), "float32"), np.full((1, most), -1)
    scores = np.zeros((1, most), "float32")
    for number, (box, kind, score) in enumerate(rows):
        boxes[0, number], classes[0, number], scores[0, number] = box, kind, score
    return Found(boxes, classes, scores)


def shown():
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), "uint8")
    found = objects((LEFT, 0, 0.9), (BELOW, 1, 0.8), (RIGHT, 1, 0.3))
    models = {"float": found, "searched": objects((LEFT, 1, 0.7), (LEFT, 0, 0.6))}
    return ShownObjects(images, NAMES, objects((LEFT, 0, 1), (RIGHT, 1, 1)), models)


def test_boxes_are_right_or_wrong():
    given = shown()
    said = {
        name: [(text, state) for _, text, state in boxes_of(given, found, 0)]
        for name, found in given.models.items()
    }
    # The float model's third has too little score; the other's first a wrong class.
    assert said["float"] == [("$cat_$ 90 %", "right"), ("big $dog_ 80 %", "wrong")]
    assert said["searched"] == [("big $dog_ 70 %", "wrong"), ("$cat_$ 60 %", "right")]
    own = boxes_of(given, given.truth, 0)
    assert [(text, state) for _, text, state in own] == [
        ("$cat_$", "object"),
        ("big $dog_", "object"),
    ]


def test_overlaps_are_those_of_the_metric():
    corners = np.random.default_rng(0).uniform(-0.2, 1.2, (40, 4))
    for box in corners[:8]:
        want = iou(box[None], corners)[0]
        np.testing.assert_allclose(overlaps(box, corners), want, atol=1e-12)
    assert overlaps(corners[0], np.zeros((0, 4))).shape == (0,)


def test_a_figure_has_every_box_in_its_colour():
    figure = plot_objects(shown())
    assert [a.get_title() for a in figure.axes] == ["labelled", "float", "searched"]
    patches = [patch for axes in figure.axes for patch in axes.patches]
    colours = [STYLES[s][0] for s in ("object", "object", "right", "wrong", "wrong")]
    found = [patch.get_edgecolor() for patch in patches]
    assert found[:5] == [to_rgba(colour) for colour in colours]
    first = patches[0]
    np.testing.assert_allclose(
        [*first.get_xy(), first.get_width(), first.get_height()],
        [0.1 * 60 - 0.5, 0.1 * 40 - 0.5, 0.3 * 60, 0.3 * 40],
        rtol=1e-5,
    )


def metric(seed):
    mean_ap = MeanAP(NAMES)
    for own, found in random_images(seed, 30, 2):
        mean_ap.add(own, *(zip(*found, strict=True) if found else ((), (), ())))
    return mean_ap


class Meter:
    def __init__(self, mean_ap):
        self.mean_ap = mean_ap


def test_curves_are_those_of_the_metric_before_and_after_files(tmp_path):
    report = metric(0).report()
    curves = {p: curves_of(Meter(metric(s))) for s, p in enumerate(("", "tflite_"))}
    np.savez(tmp_path / CURVES, **curves_arrays(NAMES, curves))
    read = read_curves(tmp_path)
    assert list(read) == list(NAMES)
    for name, curve in read.items():
        row = report.classes[name]
        np.testing.assert_array_equal(curve.recall, row.recall)
        np.testing.assert_array_equal(curve.precision, row.precision)
        envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
        steps = np.diff(curve.recall, prepend=0.0)
        assert curve.area == row.ap_area == pytest.approx(np.sum(steps * envelope))
    figure = plot_precision_recall(
        {"float": read, "file": read_curves(tmp_path, "tflite_")}
    )
    assert [a.get_title() for a in figure.axes] == list(NAMES)
    for axes, name in zip(figure.axes, NAMES, strict=True):
        line = axes.lines[0]
        np.testing.assert_array_equal(line.get_xdata()[1:], report.classes[name].recall)
        np.testing.assert_array_equal(
            line.get_ydata()[1:], report.classes[name].precision
        )
        assert f"{report.classes[name].ap_area:.3f}" in line.get_label()


def test_classes_whose_long_names_begin_alike_keep_their_own_curves(tmp_path):
    names = tuple(f"{'x' * 60}{number}" for number in range(3))
    curves = {n: Curve(np.ones(1), np.ones(1), k) for k, n in enumerate(names)}
    np.savez(tmp_path / CURVES, **curves_arrays(names, {"": curves}))
    assert [curve.area for curve in read_curves(tmp_path).values()] == [0, 1, 2]


@pytest.fixture
def workdir(tmp_path):
    rows = [
        {"name": n, "accuracy": 0.5, "bit_ops": 1e9, "weight_bytes": 9}
        for n in ("float", "searched")
    ]
    summary = {
        "dataset": "cells",
        "model": "ssd",
        "full_precision_bit_ops": 1e10,
        "rows": rows,
        "metric": "map_07",
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    np.savez(tmp_path / OBJECTS, **objects_arrays(shown()))
    for folder in ("pretrain", "finetune"):
        (tmp_path / folder).mkdir()
        curves = {"": curves_of(Meter(metric(1)))}
        if folder == "finetune":
            curves["tflite_"] = curves_of(Meter(metric(2)))
        np.savez(tmp_path / folder / CURVES, **curves_arrays(NAMES, curves))
    return tmp_path


def test_the_page_embeds_both_figures(workdir):
    text = write_report(workdir).read_text(encoding="utf-8")
    for title in ("Objects found", "Precision and recall"):
        section = text.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
        assert "<svg" in section and "Left out" not in section
    assert "big $dog_ 80 %" in text and "finetune, .tflite" in text
    for number in range(5):  # further students: none is left out without a word
        curves = curves_arrays(NAMES, {"": curves_of(Meter(metric(number)))})
        (workdir / f"more{number}").mkdir()
        np.savez(workdir / f"more{number}" / CURVES, **curves)
    text = write_report(workdir).read_text(encoding="utf-8")
    for name in ("float", "finetune", *(f"more{number}" for number in range(5))):
        assert re.search(rf">{name} 0\.\d+<", text), name
    names = {path.name for path in write_figures(workdir, "png")}
    assert {"objects_found.png", "precision_and_recall.png"} <= names


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"boxes1": np.zeros((1, 3, 5))}, "boxes1 must be numbers of shape"),
        ({"classes1": np.full((1, 3), 7)}, "known classes"),
        ({"boxes2": np.full((1, 3, 4), np.nan)}, "finite boxes"),
        ({"class_names": np.arange(2)}, "class_names must be texts"),
        ({"images": np.zeros((1, 4, 4, 3))}, "must be uint8"),
    ],
)
def test_broken_files_are_named_on_the_page(workdir, change, text):
    np.savez(workdir / OBJECTS, **{**objects_arrays(shown()), **change})
    with pytest.raises(ReportError, match=text):
        read_objects(workdir)
    assert text in write_report(workdir).read_text(encoding="utf-8")


def test_an_evaluation_leaves_the_curves(tmp_path):
    model = build_model("ssd_resnet8", (32, 32, 3), 2)
    random = np.random.default_rng(0)
    labels = {
        "boxes": np.array([[LEFT, RIGHT]] * 2, "float32"),
        "classes": np.array([[0, 1], [1, -1]], "int32"),
        "difficult": np.zeros((2, 2), bool),
    }
    batches = [(random.random((2, 32, 32, 3), np.float32), labels)]
    path = tmp_path / CURVES
    result = measure_both(model, None, batches, class_names=NAMES, curves=path)
    areas = [curve.area for curve in read_curves(tmp_path).values()]
    assert np.mean(areas) == pytest.approx(result["map_area"])


def test_curves_have_a_panel_a_class():
    line = Curve(np.array([0.5, 1.0]), np.array([1.0, 0.5]), 0.75)
    names = [f"class {n}" for n in range(7)]
    figure = plot_precision_recall({"float": dict.fromkeys(names, line)})
    assert [a.get_title() for a in figure.axes if a.axison] == names
    models = {f"model {n}": {"one": line} for n in range(9)}
    (panel,) = plot_precision_recall(models).axes
    drawn = {(each.get_color(), each.get_linestyle()) for each in panel.lines}
    assert len(drawn) == 9


def test_every_image_and_model_has_its_place():
    images, one = np.zeros((7, 4, 4, 3), "uint8"), objects((LEFT, 0, 0.9))
    every = Found(*(np.repeat(a, 7, 0) for a in (one.boxes, one.classes, one.scores)))
    models = {f"model {number}": every for number in range(4)}
    figure = plot_objects(ShownObjects(images, NAMES, every, models))
    assert len(figure.axes) == 7 * 5
