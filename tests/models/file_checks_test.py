"""Model files are looked at before Keras: by another process, and without values."""

import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from gmpq_tf.models import file_checks, hdf5_probe
from gmpq_tf.models.file_checks import (
    check_hdf5,
    check_size,
    check_zip,
    expand_user,
    has_lambda,
    is_file,
    read_config,
    unknown_module,
)


@pytest.fixture
def hdf5_file(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["group/array"] = np.ones((2, 3))
        file["circle"] = file["group"]
        file["group/back"] = file["/"]
        file["group/nowhere"] = h5py.SoftLink("/absent")
        del file["group/nowhere"]
    return tmp_path / "m.h5"


def test_a_good_file_passes_even_if_its_links_lead_in_a_circle(hdf5_file):
    check_hdf5(hdf5_file)
    hdf5_probe.probe(hdf5_file)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import time; time.sleep(60)", "did not end within"),
        (
            "import hdf5_probe as h; h.PROCESSOR_SECONDS = 0; h.limit_processor(0)\n"
            "while True: pass",
            "did not end while",
        ),
        ("import os; os.abort()", "HDF5 crashed"),
        ("import sys; sys.exit('OSError: bad heap')", "OSError: bad heap"),
    ],
)
def test_a_library_that_hangs_or_crashes_harms_the_probe_alone(
    script, message, hdf5_file, tmp_path, monkeypatch
):
    folder = Path(hdf5_probe.__file__).parent
    path = f"import sys\nsys.path.insert(0, {str(folder)!r})\n"
    (tmp_path / "probe.py").write_text(path + script)
    monkeypatch.setattr(hdf5_probe, "__file__", str(tmp_path / "probe.py"))
    monkeypatch.setattr(file_checks, "PROBE_SECONDS", 4.0)
    with pytest.raises(ValueError, match=message):
        check_hdf5(hdf5_file)


def test_a_small_file_that_hangs_the_library_is_given_up_within_five_seconds():
    """Of processor time, of which starting the probe takes one at most."""
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import hdf5_probe\n"
        "hdf5_probe.limit_processor(1000)\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0])"
    )
    folder = str(Path(hdf5_probe.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, check=True
    )
    assert int(done.stdout) + 1 < 5


def test_texts_that_may_repeat_one_long_one_are_refused(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("texts", data=["a", "b"], dtype=h5py.string_dtype())
    with pytest.raises(ValueError, match="no array of numbers"):
        check_hdf5(tmp_path / "m.h5")


def test_compressed_arrays_pass_up_to_ten_times_the_file(tmp_path):
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.savez_compressed(tmp_path / "a.npz", values=values, zeros=np.zeros(10**6))
    check_zip(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_is_as_large_as_its_file(suffix, tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((50,)), keras.layers.Dense(40)])
    path = tmp_path / f"m{suffix}"
    model.save(path)
    monkeypatch.setattr(hdf5_probe, "FREE_BYTES", 0)
    config = read_config(path)
    check_size(path, config)
    monkeypatch.setattr(hdf5_probe, "MOST_EXPANSION", 0.1)
    with pytest.raises(ValueError, match="2040 weights"):
        check_size(path, config)


@pytest.mark.parametrize(
    "name", ["Lambda", "__lambda__", "keras>Lambda", "core.Lambda"]
)
def test_code_is_found_however_deep(name):
    config = {"layers": [1, {"config": [{"a": {"class_name": name}}]}]}
    assert has_lambda(config)
    assert not has_lambda({"layers": [{"class_name": "Dense", "name": "Lambda"}]})


def test_only_modules_that_are_imported_or_part_of_keras_are_known():
    def config(module, registered=None):
        layer = {"class_name": "A", "module": module, "registered_name": registered}
        return {"layers": [layer]}

    for module in ("keras.layers", "keras_hub.layers", "builtins", __name__, None):
        assert unknown_module(config(module)) is None
    assert "this" not in sys.modules
    assert unknown_module(config("this")) == "this"
    assert "this" not in sys.modules
    # Not a stock class, which would keep that name for all tests after this.
    own = type("A", (keras.layers.Dense,), {})
    keras.saving.register_keras_serializable("elsewhere", "A")(own)
    try:
        assert unknown_module(config("gone", "elsewhere>A")) is None
    finally:
        del keras.saving.get_custom_objects()["elsewhere>A"]


def test_no_path_makes_the_questions_fail(tmp_path):
    for name in ("a\0b", "x" * 1000, "~no_such_user/m.keras", ""):
        assert not is_file(expand_user(name))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert not is_file(loop)


def test_without_posix_files_are_still_probed(hdf5_file, monkeypatch):
    """As on Windows, where `resource`, SIGXCPU and SIGKILL are missing."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(file_checks, "_OUT_OF_TIME", ())
    hdf5_probe.limit_processor(10**6)
    check_hdf5(hdf5_file)
    hdf5_file.write_bytes(hdf5_file.read_bytes()[:100])
    with pytest.raises(ValueError, match="OSError"):
        check_hdf5(hdf5_file)


@keras.saving.register_keras_serializable("tests")
class Counted(keras.initializers.Initializer):
    """Ones, and how often they were made."""

    made = 0

    def __call__(self, shape, dtype=None):
        Counted.made += 1
        return keras.ops.ones(shape, dtype)


@pytest.mark.parametrize("bound", [None, 0])
def test_what_was_only_looked_at_is_never_given_values(tmp_path, monkeypatch, bound):
    """Else the next `fit` would make all weights of a file, also of a refused one."""
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(2, kernel_initializer=Counted())
    keras.Model(inputs, dense(inputs)).save(tmp_path / "model.keras")
    path, made = tmp_path / "model.keras", Counted.made
    if bound is None:
        check_size(path, read_config(path))
    else:
        monkeypatch.setattr(hdf5_probe, "FREE_BYTES", 0)
        monkeypatch.setattr(hdf5_probe, "MOST_EXPANSION", 0)
        with pytest.raises(ValueError, match="weights, its file far fewer"):
            check_size(path, read_config(path))
    with keras.StatelessScope():
        pass  # at whose end Keras makes the values that are still missing
    assert Counted.made == made
