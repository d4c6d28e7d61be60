import errno
import os
import shutil
from pathlib import Path

import pytest

from gmpq_tf.files import (
    FileWriteError,
    check_space,
    remove_temporaries,
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
