"""Files that reach out of their folder, or claim to be larger than memory."""

import functools
import io
import json
import os
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import check_files
from gmpq_tf.models import ModelFileError, WeightsError, load_model
from gmpq_tf.models.foreign.files import read_weight_file
from gmpq_tf.report import ReportError
from gmpq_tf.report.read_maps import read_attribution
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.records import recorded_data
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.run.stage import open_stage
from gmpq_tf.train.sweep import read_points
from tests.fuzz.limits import limited
from tests.fuzz.model_files import members, saved, with_config, zipped
from tests.fuzz.readers import BACKUP, READERS


@pytest.mark.parametrize("name", ["../escaped", "{}/escaped", "a/../../escaped"])
def test_a_member_that_leads_out_of_the_archive(name, tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    hostile = {name.format(tmp_path): b"x", "assets/a": b"x"}
    content = zipped(members(saved(".keras")) | hostile)
    path = folder / "m.keras"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="outside of the archive"):
        load_model(path)
    assert not list(tmp_path.glob("**/*escaped*"))


@pytest.mark.parametrize("link", ["external data", "virtual data", "link"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_array_of_another_file(link, suffix, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    path, content = tmp_path / f"m{suffix}", saved(suffix)
    buffer = io.BytesIO(content)
    if suffix == ".keras":
        buffer = io.BytesIO(members(content)["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        if link == "external data":
            external = [(str(secret), 0, 24)]
            file.create_dataset("stolen", (2, 3), "float32", external=external)
        elif link == "virtual data":
            layout = h5py.VirtualLayout((2, 3), "float32")
            layout[...] = h5py.VirtualSource(secret, "x", (2, 3))
            file.create_virtual_dataset("stolen", layout)
        else:
            file["stolen"] = h5py.ExternalLink(str(secret), "x")
    content = buffer.getvalue()
    if suffix == ".keras":
        content = zipped(members(saved(suffix)) | {"model.weights.h5": content})
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="lies in another file"):
        read_weight_file(path)  # which for a .keras file calls load_model
    if suffix == ".h5":
        with pytest.raises(ModelFileError, match="lies in another file"):
            load_model(path)


def test_names_that_lead_out_of_the_workdir(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"config": {"data": {"seed": 1}}}))
    run = tmp_path / "run"
    (run / "config").mkdir(parents=True)
    for name in ("../../x", str(tmp_path / "x"), "a\0b", "x" * 1000):
        with pytest.raises(StageError, match="name="):
            recorded_data(run, name)
        with pytest.raises((StageError, OSError), match="name"):
            open_stage(WorkdirConfig(workdir=str(run)), name, {}, {})
        with pytest.raises(ReportError, match="workdir"):
            read_attribution(run, f"{name}.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.json"]


def test_points_of_a_sweep_stay_in_its_folder(tmp_path):
    values = ["../../x", "/etc", "é" * 200, "a\nb", "..", ""]
    spec = tmp_path / "sweep.json"
    spec.write_text(json.dumps({"grid": {"search.augment": values}}))
    for name in read_points(spec):
        (tmp_path / name).mkdir()  # raises where there is a separator, or too much
    assert len(list(tmp_path.iterdir())) == 1 + len(values)


@functools.cache
def deflated(name, size):
    """A zip file with one member of so many zeros after an array's header."""
    buffer, zeros = io.BytesIO(), bytes(10**7)
    header = io.BytesIO()
    array = {"descr": "|u1", "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(header, array)
    archive = zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open(name, "w") as member:
        member.write(header.getvalue())
        for _ in range(size // len(zeros)):
            member.write(zeros)
    return buffer.getvalue()


def claiming(shape):
    """An array whose header claims a shape and that has four bytes."""
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return zipped({"images.npy": buffer.getvalue() + b"1234"})


@pytest.mark.parametrize("shape", [(10**9,), (10**13,), (2**40, 2**40), (-1,)])
@pytest.mark.parametrize("name", ["attribution", "backup", "weights .npz"])
def test_a_header_that_claims_many_elements(name, shape, tmp_path):
    reader = BACKUP if name == "backup" else READERS[name]
    refuses(reader, claiming(shape), tmp_path)


@pytest.mark.parametrize("name", ["attribution", "weights .npz"])
def test_an_array_that_unpacks_to_a_thousand_times_the_file(name, tmp_path):
    refuses(READERS[name], deflated("images.npy", 250_000_000), tmp_path)


def refuses(reader, content, folder):
    (folder / reader.file).write_bytes(content)
    with limited(reader.file), pytest.raises(reader.errors, match="Received"):
        reader.read(folder)


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_hdf5_arrays_that_claim_more_than_the_file_has(suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/a/vars/0", (10**6, 10**4), "f4", chunks=(100, 100))
    with limited(suffix), pytest.raises(WeightsError, match="unpacks to far more"):
        read_weight_file(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_layer_of_more_weights_than_the_file_has(suffix, tmp_path):
    content = with_config(
        suffix, lambda layers: layers[3]["config"].update(units=10**8)
    )
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with limited(suffix), pytest.raises(ModelFileError, match=r"weights|shape"):
        load_model(path)


def png_claiming(width, height):
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    parts = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


HEADERS = {
    "large.png": png_claiming(60_000, 60_000),
    "middle.png": png_claiming(12_000, 12_000),
    "gif.png": b"GIF89a\xff\xff\xff\xff\x00\x00\x00;",
    "bitmap.bmp": b"BM"
    + struct.pack("<IIIIiiHHI", 100, 0, 54, 40, 60_000, 60_000, 1, 24, 0)
    + bytes(46),
}


@pytest.mark.parametrize("name", HEADERS)
def test_pictures_that_claim_many_pixels(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(HEADERS[name])
    for whole in (False, True):
        with limited(name), pytest.raises(DataError, match="pixels"):
            check_files((str(path),), whole)


SPECIAL = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "empty": lambda path: path.touch(),
    "two gigabytes": lambda path: (path.touch(), os.truncate(path, 2 * 10**9)),
    "text": lambda path: path.write_text("not what it should be"),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_such_file(name, kind, tmp_path):
    """Documented errors or what a missing file gives; no endless reading."""
    reader = READERS[name]
    path = tmp_path / reader.file
    path.parent.mkdir(exist_ok=True)
    SPECIAL[kind](path)
    errors = reader.errors if isinstance(reader.errors, tuple) else (reader.errors,)
    with limited(f"{name}, {kind}"):
        try:
            read = reader.read(tmp_path)
        except (*errors, OSError) as error:
            assert str(path.name) in str(error)
        else:
            assert not read
