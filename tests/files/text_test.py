import json
import os

import numpy as np
import pytest

from gmpq_tf.files import append_jsonl, parse_json, read_jsonl, read_text, write_json


def test_json_of_numpy_and_of_what_json_lacks(tmp_path):
    value = {"a": np.float32(0.5), "b": np.arange(2), "c": (1, float("inf")), "d": None}
    path = write_json(tmp_path / "file.json", {**value, "e": np.float32("nan")})
    expected = {"a": 0.5, "b": [0, 1], "c": [1, None], "d": None, "e": None}
    assert json.loads(path.read_text()) == expected


def test_json_refuses_what_it_cannot_say(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested at most"),
        ("[" * 201 + "]" * 201, "nested at most"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ("7" * 5000, "digits"),
    ],
)
def test_json_that_would_fail_later_fails_at_once(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_other_json_is_what_json_says():
    text = '{"a": [1, {"b": null}], "c": ' + "[" * 190 + "]" * 190 + "}"
    assert parse_json(text) == json.loads(text)


def test_only_small_plain_files_of_text_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("é", encoding="utf-8")
    assert read_text(path) == "é"
    path.write_bytes(b"a\xff")
    with pytest.raises(ValueError, match="at byte 1"):
        read_text(path)
    os.truncate(path, 10**9)
    with pytest.raises(ValueError, match="size=1000000000"):
        read_text(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="plain"):
        read_text(tmp_path / "pipe")
