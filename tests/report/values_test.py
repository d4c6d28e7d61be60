"""values.json on the page: read with care, and escaped."""

import json

import pytest

from gmpq_tf.report import ReportError
from gmpq_tf.report.values import decision_line, read_values, values_section

EVIL = '<script>alert("x")</script>&'


def write(workdir, **changes):
    values = {EVIL: {"weights": {"2": -0.5, "4": 0}, "activations": {"3": -0.125}}}
    data = {"margin": {"text": "It has not decided."}, "values": values, **changes}
    (workdir / "search").mkdir(exist_ok=True)
    (workdir / "search" / "values.json").write_text(json.dumps(data))


def test_values_are_shown(tmp_path):
    assert read_values(tmp_path) is None
    assert not [*decision_line(tmp_path), *values_section(tmp_path)]
    write(tmp_path)
    assert list(decision_line(tmp_path)) == ["It has not decided."]
    text = "\n".join(values_section(tmp_path))
    assert "<script>" not in text and "&lt;script&gt;" in text
    for said in ("W2", "W4", "A3", "-0.125", "<td>-0.5</td><td>0</td>"):
        assert said in text
    assert "A2" not in text
    floor = "of policies that spend 97 % or more of the first budget"
    assert floor in text  # as earlier versions did, which do not say it
    write(tmp_path, spends=True)
    assert floor in "\n".join(values_section(tmp_path))
    write(tmp_path, spends=False)
    assert floor not in "\n".join(values_section(tmp_path))


def decisions(**changes):
    choice = {"bits": 4, "instead": 3, "in_errors": 0.5, "decided": False, **changes}
    return {"text": "Not decided.", "layers": {EVIL: {"weights": choice}}}


def test_how_sure_each_choice_is_is_shown(tmp_path):
    write(tmp_path, decisions=decisions())
    assert list(decision_line(tmp_path)) == ["It has not decided.", "Not decided."]
    text = "\n".join(values_section(tmp_path))
    assert "<td>4</td><td>3</td><td>0.5, open</td><td></td>" in text
    assert "<script>" not in text
    write(tmp_path, decisions=decisions(in_errors=None, instead=None))
    text = "\n".join(values_section(tmp_path))
    assert "<td>4</td><td></td><td></td>" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"decisions": 3},
        {"decisions": {"text": ""}},
        {"decisions": decisions(bits="<b>")},
        {"decisions": decisions(in_errors="many")},
        {"margin": 3},
        {"margin": {}},
        {"values": {"a": {"weights": {}}}},
        {"values": {"a": {"weights": {"2": "x"}, "activations": {}}}},
        {"values": {"a": {"weights": {"two": 1.0}, "activations": {}}}},
    ],
)
def test_other_shapes_are_refused(changes, tmp_path):
    write(tmp_path, **changes)
    with pytest.raises(ReportError, match=r"search/values\.json"):
        read_values(tmp_path)
    (line,) = decision_line(tmp_path)
    assert line.startswith("Values left out")
    assert not list(values_section(tmp_path))
