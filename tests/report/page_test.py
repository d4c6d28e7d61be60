"""report.html: complete, self-contained, escaped, and honest about what lacks."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from gmpq_tf.report import (
    ReportError,
    ResultRow,
    Summary,
    write_figures,
    write_report,
)
from gmpq_tf.report.budgets import bit_ops_budget
from gmpq_tf.report.page import PICTURES

VOID = {"meta", "img", "br"}
EVIL = '<script>alert("x")</script>&'


class Page(HTMLParser):
    """Checks nesting, and gathers tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def row(name, **optional):
    row = {"name": name, "accuracy": 0.9, "bit_ops": 1e7, "weight_bytes": 900}
    return {**row, **optional}


def write_summary(workdir, **changes):
    summary = {
        "dataset": "digits",
        "model": "digits_cnn",
        "full_precision_bit_ops": 1e9,
        "rows": [row("float"), row("searched", agreement=0.997)],
        **changes,
    }
    (workdir / "summary.json").write_text(json.dumps(summary))


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(workdir, layer="conv"):
    """A run with every file a report reads."""
    bits = {"weight_bits": 4, "activation_bits": 3}
    made_by = {"strategy": "gmpq", "config": {"bit_ops_budget": 0.01, "eta": 0.125}}
    policy = {"format": 1, "model": "net", "layers": {layer: bits}, "made_by": made_by}
    write_json(workdir / "search" / "policy.json", policy)
    branches = {f"{k}_bits": [2, 4] for k in ("weight", "activation")}
    chances = {f"{k}_probabilities": [0.5, 0.5] for k in ("weight", "activation")}
    importances = {"layers": {layer: {**branches, **chances}}}
    write_json(workdir / "search" / "importances.json", importances)
    write_json(workdir / "cost.json", {"layers": [{"name": layer, "macs": 9}]})
    epoch = {"epoch": 0, "loss": 1.0, "task_risk": 1.0, "expected_bit_ops": 2e7}
    for stage in ("pretrain", "search"):
        write_json(workdir / stage / "metrics.jsonl", epoch)
    np.savez(
        workdir / "maps.npz",
        images=np.zeros((2, 8, 8, 1), np.uint8),
        labels=np.arange(2),
        teacher=np.ones((2, 4, 4)),
        student_searched=np.ones((2, 4, 4)),
        rank_distance_searched=np.zeros(2),
    )


def test_a_whole_run_has_every_picture_and_the_provenance(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path, attribution="maps.npz", command="python -m train.demo")
    path = write_report(tmp_path)
    assert path == tmp_path / "report" / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == page.tags.count("svg") == len(PICTURES)
    for picture in pictures:
        assert len(list(ElementTree.fromstring(picture).iter())) > 20
    for picture in re.findall(r"data:image/png;base64,([^\"]+)", text):
        matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)))
    for said in ("99.70 %", "100 times fewer", "python -m train.demo", "0.125"):
        assert said in page.text
    assert text.index("<table>") < text.index("<svg") < text.index("Provenance")


def test_layers_that_stay_float_are_named(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path)
    assert "32 x 32" not in Page(write_report(tmp_path).read_text("utf-8")).text
    layers = {
        "layers": [{"name": "conv", "macs": 9}],
        "float_layers": [{"name": f"lstm{EVIL}", "macs": 12345}],
    }
    write_json(tmp_path / "cost.json", layers)
    page = Page(write_report(tmp_path).read_text("utf-8"))
    said = f"counted at 32 x 32 bits: lstm{EVIL} (12,345 multiply-adds)."
    assert said in page.text


def test_every_budget_is_said_with_what_the_policy_costs_of_it(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path)
    once = Page(write_report(tmp_path).read_text("utf-8")).text
    assert "bit_ops: 0.01 GBOPs of at most 0.01 GBOPs, 100.0 %." in once
    limits = [
        {"resource": "bit_ops", "unit": "bit operations", "limit": 4e9, "cost": 3e9},
        {"resource": "file_bytes", "unit": "bytes", "limit": 6e4, "cost": 57000.0},
        {"resource": "latency_ms", "unit": "ms", "limit": 2.5, "cost": 2.0},
    ]
    limits[1]["said"] = "60kB"
    path = tmp_path / "search" / "policy.json"
    policy = json.loads(path.read_text())
    policy["made_by"]["config"]["limits"] = limits
    write_json(path, policy)
    page = Page(write_report(tmp_path).read_text("utf-8")).text
    for said in (
        "bit_ops: 3 GBOPs of at most 4 GBOPs, 75.0 %.",
        "file_bytes: 57 kB predicted of at most 60 kB, 95.0 % (said: 60kB).",
        "latency_ms: 2 ms predicted of at most 2.5 ms, 80.0 %.",
    ):
        assert f"Budget of the search: {said}" in page
    rows = [row("uniform W3A3", file_bytes=99999), row("searched", file_bytes=56924)]
    write_summary(tmp_path, rows=rows)
    page = Page(write_report(tmp_path).read_text("utf-8")).text
    assert "(said: 60kB); the exported file has 56.92 kB." in page
    assert page.count("the exported file has") == 1
    policy["made_by"]["config"]["limits"] = [{**limits[1], "unit": "bits"}]
    write_json(path, policy)
    page = Page(write_report(tmp_path).read_text("utf-8")).text
    assert "Budgets left out" in page and "unit must be one of" in page


def test_the_page_loads_nothing(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path, attribution="maps.npz")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    keys = ("src", "href", "xlink:href")
    links = [value for key, value in page.attributes if key in keys]
    names = {value for key, value in page.attributes if key == "id"}
    inside = [link for link in links if link[0] == "#"]
    assert inside and all(link[1:] in names for link in inside)
    others = [link for link in links if link[0] != "#"]
    assert others and all(li.startswith("data:image/png;base64,") for li in others)


def test_figures_are_text_and_share_no_id(tmp_path):
    write_run(tmp_path, layer="block_7_expand")
    write_summary(tmp_path, attribution="maps.npz")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.text.count("block_7_expand") >= 2  # of the policy, of probabilities
    assert "accuracy (%)" in page.text and "share of MACs (%)" in page.text
    names = [value for key, value in page.attributes if key == "id"]
    assert len(names) == len(set(names))


def test_the_headline_says_what_is_asked_first(tmp_path):
    write_run(tmp_path)
    searched = row("searched", file_bytes=56924, tflite_accuracy=0.9526)
    rows = [row("float"), row("uniform W3A3", tflite_accuracy=0.913), searched]
    write_summary(tmp_path, rows=rows)
    export = {"storage": "packed", "storage_bytes": {"fast": 100976}}
    export["latency_ms"] = {"packed": 0.0123, "fast": 0.007, "float": 0.028}
    write_json(tmp_path / "finetune" / "export_report.json", export)
    text = write_report(tmp_path).read_text("utf-8")
    head = Page(re.search('<dl class="facts">.*?</dl>', text, re.DOTALL)[0]).text
    for said in (
        *("56.9 kB", "float weights 900 B; all kernels in INT8 101.0 kB"),
        *("95.26 %", "float 90.00 %; uniform W3A3 91.30 %"),
        *("0.0123 ms", "float 0.028 ms; INT8 0.007 ms", "1/100"),
    ):
        assert said in head, said
    # A model is not compared with itself, and 1.4 times less is not "once less".
    alone = row("uniform W8A8 (compress)", file_bytes=9, bit_ops=7e8)
    write_summary(tmp_path, rows=[row("float", bit_ops=1e9), alone])
    text = write_report(tmp_path).read_text("utf-8")
    head = Page(re.search('<dl class="facts">.*?</dl>', text, re.DOTALL)[0]).text
    assert "1/1.4 of full" in head and "uniform" not in head
    write_summary(tmp_path, rows=rows)
    write_json(tmp_path / "finetune" / "export_report.json", {"latency_ms": ["no"]})
    assert "95.26 %" in Page(write_report(tmp_path).read_text("utf-8")).text


def test_the_time_that_was_predicted_stands_beside_the_measured(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path, rows=[row("searched", file_bytes=9)])
    path = tmp_path / "search" / "policy.json"
    policy = json.loads(path.read_text())
    limit = {"resource": "latency_ms", "unit": "ms", "limit": 2.5, "cost": 2.125}
    policy["made_by"]["config"]["limits"] = [limit]
    write_json(path, policy)
    export = {"storage": "fast", "latency_ms": {"fast": 2.25}}
    write_json(tmp_path / "finetune" / "export_report.json", export)
    text = Page(write_report(tmp_path).read_text("utf-8")).text
    assert "2.25 ms predicted 2.12 ms;" in text


def test_other_runs_are_drawn_beside(tmp_path):
    # Two runs of one name are two runs.
    runs = [tmp_path / name for name in ("one", "two", "again/one")]
    for number, run in enumerate(runs):
        write_run_folder(run, number)
    alone = Page(write_report(runs[0]).read_text("utf-8"))
    both = Page(write_report(runs[0], runs[1:]).read_text("utf-8"))
    assert both.tags.count("svg") == alone.tags.count("svg") + 1
    of = "digits on validation images"
    assert f"Every row of one ({of}), two ({of}), one ({of})." in both.text
    assert f"Accuracy of the Keras models{of.removeprefix('digits')}" in both.text
    twin = Page(write_report(runs[0], runs[2:]).read_text("utf-8"))
    assert twin.tags.count("svg") == both.tags.count("svg")
    write_summary(runs[1], metric="loss")
    mixed = Page(write_report(runs[0], [runs[1]]).read_text("utf-8"))
    assert "by the same metric. Received: accuracy, loss." in mixed.text
    with pytest.raises(ReportError, match=r"summary\.json"):
        write_report(runs[0], [tmp_path / "three"])


def write_run_folder(folder, number):
    folder.mkdir(parents=True)
    write_run(folder)
    rows = [row("searched", accuracy=0.5 + number / 10)]
    write_summary(folder, rows=rows, split="validation")


def test_a_budget_has_a_gauge(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path)
    text = write_report(tmp_path).read_text("utf-8")
    assert re.search(r'<meter min="0" max="1" value="1.0000"', text)


@pytest.mark.parametrize(
    ("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_figures_for_papers(tmp_path, kind, start):
    write_run(tmp_path)
    write_summary(tmp_path)
    paths = write_figures(tmp_path, kind)
    assert len(paths) == len(PICTURES) - 1  # no attribution in this run
    first = [path.read_bytes() for path in paths]
    assert all(content.startswith(start) for content in first)
    assert [p.read_bytes() for p in write_figures(tmp_path, kind)] == first


def test_another_kind_of_figure_is_refused(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path)
    with pytest.raises(ReportError, match="format='gif'"):
        write_figures(tmp_path, "gif")


def test_what_lacks_is_said(tmp_path):
    write_summary(tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    # The accuracy picture needs the summary only.
    assert page.text.count("Left out: ") == len(PICTURES) - 1
    assert "search/policy.json" in page.text
    assert str(tmp_path) not in page.text


def test_a_search_that_trained_nothing_lacks_nothing(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path, attribution="maps.npz")
    for name in ("importances.json", "metrics.jsonl"):
        (tmp_path / "search" / name).unlink()
    sides = {"weights": {"2": -1.0, "4": 0.0}, "activations": {"3": 0.0}}
    values = {"margin": {"text": "sure"}, "values": {"conv": sides}}
    write_json(tmp_path / "search" / "values.json", values)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Left out: " not in page.text and "Branch probabilities" not in page.text
    (tmp_path / "search" / "metrics.jsonl").write_text("{")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.text.count("Left out: ") == 2


def test_a_broken_optional_file_is_named(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path, attribution="maps.npz")
    (tmp_path / "search" / "importances.json").write_text("{")
    (tmp_path / "maps.npz").write_bytes(b"no")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.text.count("Left out: ") == 2
    assert "search/importances.json must be JSON" in page.text


def test_everything_is_escaped(tmp_path):
    write_run(tmp_path, layer=EVIL)
    write_summary(tmp_path, model=EVIL, command=EVIL, rows=[row(EVIL)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    write_summary(tmp_path, **{**summary, "versions": {EVIL: EVIL + "\ud800"}})
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 5


def test_a_bad_summary_leaves_the_old_report(tmp_path):
    write_summary(tmp_path)
    path = write_report(tmp_path)
    before = path.read_bytes()
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ReportError, match="rows"):
        write_report(tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_same_run_gives_the_same_page(tmp_path):
    write_run(tmp_path)
    write_summary(tmp_path, attribution="maps.npz")
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


@pytest.mark.parametrize(
    ("own", "made_by", "expected"),
    [
        (None, {}, None),
        (None, {"config": {"bit_ops_budget": 0.01}}, 10.0),
        (None, {"bit_ops_budget": 250}, 250),
        (0.5, {"bit_ops_budget": 250}, 500.0),
        (None, {"config": {"bit_ops_budget": None}}, None),
        (None, {"config": {"bit_ops_budget": "small"}}, None),
        (None, {"config": "none"}, None),
    ],
)
def test_budget(own, made_by, expected):
    rows = (ResultRow("float", 0.5, 1000, 10),)
    summary = Summary("d", "m", 1000, rows, bit_ops_budget=own)
    assert bit_ops_budget(summary, made_by) == expected


def test_reports_need_no_tensorflow():
    code = "import sys, gmpq_tf.report; assert 'tensorflow' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
