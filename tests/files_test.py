import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gmpq_tf.files import (
    DamagedFileError,
    FileWriteError,
    append_jsonl,
    check_space,
    parse_json,
    read_arrays,
    read_jsonl,
    read_text,
    remove_temporaries,
    replace_file,
    write_arrays,
    write_atomic,
    write_json,
)

ARRAYS = {
    "0": np.arange(6, dtype="float32").reshape(2, 3),
    "1": np.array([], "int64"),
    "epoch": np.array(7),
}


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


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, where):
    path = write_atomic(tmp_path / "policy.json", "old")
    owner = os if where == "fsync" else Path
    monkeypatch.setattr(owner, where, full)
    with pytest.raises(FileWriteError, match=r"policy\.json.*No space left.*Make room"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["policy.json"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "a").write_text("no folder")
    with pytest.raises(FileWriteError, match=r"Received: .*b\.json"):
        write_json(tmp_path / "a" / "b.json", {})
    assert names(tmp_path) == ["a"]


WRITE_TOO_MUCH = """
import resource, sys
import numpy as np
from gmpq_tf.files import write_arrays
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    write_arrays(sys.argv[1], {"a": np.ones(100_000)})
except OSError as error:
    print(error)
"""


def test_a_limit_of_the_system_leaves_the_old_file_and_no_other(tmp_path, repo_root):
    path = write_arrays(tmp_path / "state.npz", ARRAYS)
    command = [sys.executable, "-c", WRITE_TOO_MUCH, str(path)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.stdout.startswith("A file must fit on the disk"), done.stderr
    assert "File too large" in done.stdout and names(tmp_path) == ["state.npz"]
    np.testing.assert_equal(read_arrays(path), ARRAYS)


def test_too_little_space_is_refused_beforehand(tmp_path, monkeypatch):
    path = tmp_path / "not" / "there" / "state.npz"
    check_space(path, shutil.disk_usage(tmp_path).free // 2)
    with pytest.raises(FileWriteError, match=r"state\.npz.*10 bytes, of which 9 are"):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 0, 9)
        )
        check_space(path, 10)


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    kept = ["model.keras", ".model.keras", ".other.0.tmp.keras", ".model.x.tmp.keras"]
    for name in (*kept, f".model.{'0a' * 16}.tmp.keras"):
        (tmp_path / name).write_text("")
    remove_temporaries(tmp_path / "model.keras")
    assert names(tmp_path) == sorted(kept)
    remove_temporaries(tmp_path / "no folder" / "model.keras")


def test_every_truncated_backup_is_noticed(tmp_path):
    path = write_arrays(tmp_path / "state.npz", ARRAYS)
    content = path.read_bytes()
    np.testing.assert_equal(read_arrays(path), ARRAYS)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedFileError, match=r"state\.npz.*truncated or damaged"):
            read_arrays(path)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    """Dates and system bytes of a zip carry no data; all else is checked."""
    path = write_arrays(tmp_path / "state.npz", ARRAYS)
    content, drawn, noticed = path.read_bytes(), random.Random(0), 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= drawn.choice([1 << drawn.randrange(8), 255])
        path.write_bytes(damaged)
        try:
            np.testing.assert_equal(read_arrays(path), ARRAYS)
        except DamagedFileError:
            noticed += 1
    assert noticed > 0.5 * len(content)


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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_only_what_is_too_large_is_said_to_be(tmp_path, code):
    message = r"must fit on the disk.*a\.bin.*Make room"
    with (
        pytest.raises(FileWriteError, match=message),
        replace_file(tmp_path / "a.bin"),
    ):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "input.keras"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/input"),
        ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
        OSError("read past the end"),
    ],
)
def test_other_errors_of_the_block_keep_their_meaning(tmp_path, error):
    path = write_atomic(tmp_path / "a.bin", "old")
    with pytest.raises(type(error)) as found, replace_file(path):
        raise error
    assert found.value is error
    assert path.read_text() == "old" and names(tmp_path) == ["a.bin"]


def test_a_folder_that_cannot_be_written_to_is_no_full_disk(tmp_path, monkeypatch):
    def closed(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    for method, path in (("write_bytes", "b.json"), ("mkdir", "a/b.json")):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, closed)
            with pytest.raises(FileWriteError, match=r"written to.*b\.json.*Change"):
                write_json(tmp_path / path, {})
