"""Readers: what is written comes back; what is wrong is named by file and key."""

import json
import zipfile

import numpy as np
import pytest

from gmpq_tf.report import ReportError, ResultRow, Summary, read_summary
from gmpq_tf.report.read import (
    read_float_layers,
    read_importances,
    read_macs,
    read_metrics,
    read_policy,
)
from gmpq_tf.report.read_maps import read_attribution

ROW = {"name": "float", "accuracy": 0.98, "bit_ops": 1024, "weight_bytes": 400}
SUMMARY = {
    "dataset": "digits",
    "model": "digits_cnn",
    "full_precision_bit_ops": 1024,
    "rows": [ROW, {**ROW, "name": "searched", "file_bytes": None, "agreement": 0.99}],
}
IMPORTANCES = {
    "weight_bits": [2, 4],
    "weight_probabilities": [0.25, 0.75],
    "activation_bits": [8],
    "activation_probabilities": [1.0],
}


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def summary_with(**changes):
    return {**SUMMARY, **changes}


def row_with(**changes):
    return summary_with(rows=[{**ROW, **changes}])


def test_summary_comes_back(tmp_path):
    write(tmp_path / "summary.json", summary_with(seconds=3, versions={"keras": "3"}))
    rows = (
        ResultRow("float", 0.98, 1024, 400),
        ResultRow("searched", 0.98, 1024, 400, agreement=0.99),
    )
    expected = Summary("digits", "digits_cnn", 1024, rows, versions={"keras": "3"})
    assert read_summary(tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", r"summary.json must be JSON"),
        ("[1]", r"summary.json must be an object"),
        ({**SUMMARY, "rows": []}, "rows must hold at least one row"),
        ({**SUMMARY, "rows": {}}, "rows must be a list"),
        ({**SUMMARY, "rows": [3]}, r"rows\[0\] must be an object"),
        ({"rows": []}, "key 'dataset' is required"),
        (summary_with(model=7), "model must be a text"),
        (summary_with(model=" "), "model must not be empty"),
        (summary_with(full_precision_bit_ops=0), "full_precision_bit_ops must be"),
        (summary_with(versions=[1]), "versions must be an object"),
        (summary_with(attribution=1), "attribution must be a text"),
        (row_with(accuracy=98.0), r"rows\[0\].*accuracy must be a number from 0 to 1"),
        (row_with(accuracy=True), "Received: accuracy=True"),
        (row_with(accuracy=None), "Received: accuracy=None"),
        (row_with(accuracy=float("nan")), "Received: accuracy=nan"),
        (row_with(bit_ops="many"), "bit_ops must be a number 1 or more"),
        (row_with(bit_ops=10**400), "bit_ops must be a number 1 or more"),
        (row_with(bit_ops=float("inf")), "Received: bit_ops=inf"),
        (row_with(agreement=1.5), "agreement must be"),
        (row_with(file_bytes=-1), "file_bytes must be"),
    ],
)
def test_summary_of_the_wrong_shape(tmp_path, content, named):
    write(tmp_path / "summary.json", content)
    with pytest.raises(ReportError, match=named):
        read_summary(tmp_path)


def test_missing_key_names_the_nearest(tmp_path):
    row = {key: value for key, value in ROW.items() if key != "accuracy"}
    write(tmp_path / "summary.json", summary_with(rows=[{**row, "acuracy": 0.9}]))
    with pytest.raises(ReportError, match="write accuracy for acuracy"):
        read_summary(tmp_path)


def test_missing_summary_says_what_to_run(tmp_path):
    with pytest.raises(ReportError, match=r"make demo.*python -m train\.demo"):
        read_summary(tmp_path / "nowhere")


def test_summary_that_is_not_text(tmp_path):
    (tmp_path / "summary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReportError, match="UTF-8"):
        read_summary(tmp_path)


def test_metrics_come_back_in_order_and_the_later_wins(tmp_path):
    lines = ['{"epoch": 1, "loss": 9}', '{"epoch": 0, "loss": 3, "note": "x"}']
    lines.append('{"epoch": 1, "loss": 2, "p": null}')
    write(tmp_path / "search" / "metrics.jsonl", "\n".join(lines))
    assert list(read_metrics(tmp_path, "search").items()) == [
        (0, {"epoch": 0.0, "loss": 3.0}),
        (1, {"epoch": 1.0, "loss": 2.0}),
    ]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "must hold an epoch"),
        ('{"epoch": 0}\n{"epo', "line 2|line 2"),
        ('{"loss": 1}', "key 'epoch' is required"),
        ('{"epoch": "a"}', "epoch must be a number"),
        ('{"epoch": 0, "loss": 1' + "0" * 400 + "}", "loss must be at most"),
    ],
)
def test_broken_metrics(tmp_path, content, named):
    write(tmp_path / "search" / "metrics.jsonl", content)
    with pytest.raises(
        ReportError, match=f"(?s)search/metrics.jsonl.*({named}|line=2)"
    ):
        read_metrics(tmp_path, "search")


def test_policy_comes_back_and_a_wrong_one_is_refused(tmp_path):
    layers = {"conv": {"weight_bits": 4, "activation_bits": 3}}
    policy = {"format": 1, "model": "net", "layers": layers, "made_by": {"seed": 1}}
    write(tmp_path / "search" / "policy.json", policy)
    read = read_policy(tmp_path)
    assert (read["conv"].weight_bits, read["conv"].activation_bits) == (4, 3)
    assert read.made_by == {"seed": 1}
    write(tmp_path / "search" / "policy.json", {**policy, "format": 2})
    with pytest.raises(ReportError, match=r"policy\.json.*format"):
        read_policy(tmp_path)


def test_macs_come_back_and_a_wrong_entry_is_named(tmp_path):
    entries = [{"name": "a", "macs": 5, "params": 1}, {"name": "b", "macs": 0}]
    write(tmp_path / "cost.json", {"layers": entries})
    assert read_macs(tmp_path) == {"a": 5, "b": 0}
    kept = {"layers": entries, "float_layers": [{"name": "lstm", "macs": 7}]}
    write(tmp_path / "cost.json", kept)
    assert read_macs(tmp_path) == {"a": 5, "b": 0, "lstm": 7}
    assert read_float_layers(tmp_path) == {"lstm": 7}
    write(tmp_path / "cost.json", {"layers": [{"name": "a", "macs": -1}]})
    with pytest.raises(ReportError, match=r"cost\.json: layers\[0\]\.macs"):
        read_macs(tmp_path)


def test_importances_come_back(tmp_path):
    write(tmp_path / "search" / "importances.json", {"layers": {"a": IMPORTANCES}})
    (layer,) = read_importances(tmp_path).values()
    assert {key: list(value) for key, value in vars(layer).items()} == IMPORTANCES


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weight_probabilities": [1.0]}, "weight_probabilities must give one number"),
        ({"weight_probabilities": [0.5, 7]}, "weight_probabilities must be a number"),
        ({"activation_bits": 8}, "activation_bits must be a list"),
        ({"activation_bits": ["8"]}, "activation_bits must be a number"),
    ],
)
def test_importances_of_the_wrong_shape(tmp_path, changes, named):
    layers = {"a": {**IMPORTANCES, **changes}}
    write(tmp_path / "search" / "importances.json", {"layers": layers})
    with pytest.raises(ReportError, match=rf"importances\.json: layers\.a: {named}"):
        read_importances(tmp_path)


def arrays(**changes):
    kept = {
        "images": np.zeros((2, 8, 8, 1), np.uint8),
        "labels": np.arange(2),
        "teacher": np.ones((2, 4, 4)),
        "student_searched": np.full((2, 4, 4), 2.0),
        "rank_distance_searched": np.array([0.1, 0.2]),
        **changes,
    }
    return {key: value for key, value in kept.items() if value is not None}


def test_attribution_comes_back(tmp_path):
    np.savez(tmp_path / "maps.npz", **arrays())
    read = read_attribution(tmp_path, "maps.npz")
    assert list(read.maps) == ["teacher", "searched"]
    np.testing.assert_array_equal(read.maps["searched"], np.full((2, 4, 4), 2.0))
    np.testing.assert_array_equal(read.rank_distances["searched"], [0.1, 0.2])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teacher": None}, "key 'teacher' is required"),
        ({"images": np.zeros((2, 8, 8, 1))}, "images must be uint8"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, "images must be uint8"),
        ({"images": np.zeros((8, 8), np.uint8)}, "images must be numbers of shape"),
        ({"teacher": np.ones((3, 4, 4))}, "map teacher must be"),
        ({"labels": np.array(["a", "b"])}, "labels must be"),
        ({"rank_distance_searched": np.ones(3)}, "searched must be"),
        ({"labels": np.array([{}, {}], object)}, "allow_pickle"),
    ],
)
def test_attribution_of_the_wrong_shape(tmp_path, changes, named):
    np.savez(tmp_path / "maps.npz", **arrays(**changes))
    with pytest.raises(ReportError, match=named):
        read_attribution(tmp_path, "maps.npz")


def test_attribution_that_is_no_npz_or_lies_elsewhere(tmp_path):
    (tmp_path / "maps.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ReportError, match=r"must be an \.npz"):
        read_attribution(tmp_path, "maps.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ReportError, match=r"must be an \.npz"):
        read_attribution(tmp_path, "one.npy")
    with pytest.raises(ReportError, match="in the workdir"):
        read_attribution(tmp_path, "../maps.npz")


def test_attribution_that_is_a_link_to_itself(tmp_path):
    (tmp_path / "a.npz").symlink_to(tmp_path / "a.npz")
    with pytest.raises(ReportError, match="workdir"):
        read_attribution(tmp_path, "a.npz")


@pytest.mark.parametrize("member", [b"no array", b"\x93NUMPY\x01\x00\x02\x00{("])
def test_attribution_whose_member_is_no_array(tmp_path, member):
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 2, 2, 1), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("teacher.npy", member)
        archive.writestr("labels.npy", member)
    with pytest.raises(ReportError, match="Received"):
        read_attribution(tmp_path, "a.npz")
