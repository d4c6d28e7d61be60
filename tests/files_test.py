import json

import numpy as np
import pytest

from gmpq_tf.files import (
    append_jsonl,
    read_jsonl,
    replace_file,
    write_atomic,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"\x00\xff", "größe\n"])
def test_writes_bytes_and_text(tmp_path, data):
    path = write_atomic(tmp_path / "a" / "b" / "file.bin", data)
    expected = data if isinstance(data, bytes) else data.encode("utf-8")
    assert path.read_bytes() == expected
    assert names(path.parent) == ["file.bin"]


def test_replaces_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("a long old content")
    write_atomic(path, "new")
    assert path.read_text() == "new"


def test_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with pytest.raises(RuntimeError), replace_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.keras"]


def test_temporary_file_keeps_the_suffix_and_the_folder(tmp_path):
    with replace_file(tmp_path / "model.keras") as temporary:
        assert temporary.suffix == ".keras"
        assert temporary.parent == tmp_path
        assert temporary.name != "model.keras"
        temporary.write_text("whole")
    assert names(tmp_path) == ["model.keras"]


def test_json_of_numpy_and_of_what_json_lacks(tmp_path):
    value = {"a": np.float32(0.5), "b": np.arange(2), "c": (1, float("inf")), "d": None}
    path = write_json(tmp_path / "file.json", {**value, "e": np.float32("nan")})
    expected = {"a": 0.5, "b": [0, 1], "c": [1, None], "d": None, "e": None}
    assert json.loads(path.read_text()) == expected


def test_json_refuses_what_it_cannot_say(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert names(tmp_path) == []


def test_jsonl_round_trip(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl(path) == []
    for epoch in range(3):
        append_jsonl(path, {"epoch": epoch, "loss": np.float64(epoch / 2)})
    assert read_jsonl(path) == [{"epoch": e, "loss": e / 2} for e in range(3)]
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("line", ["{", "[1]", ""])
def test_jsonl_names_a_broken_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_jsonl(path)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.json"
    with replace_file(path) as first, replace_file(path) as second:
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() in ("1", "2")
    assert list(tmp_path.iterdir()) == [path]
