"""What is known of a model file before Keras reads it: no code, no trap, no bomb."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.models import hdf5_probe

PROBE_SECONDS = 60.0  # of the clock, should it sleep; its own limit is much lower
PROBE_BYTES_PER_SECOND = 20e6  # of a disk far away
MAX_CONFIG_BYTES = 50_000_000
# Signals with which the system ends a process that used up its processor time.
_OUT_OF_TIME = tuple(
    int(getattr(signal, name))
    for name in ("SIGXCPU", "SIGKILL")
    if hasattr(signal, name)
)
_KERAS_PACKAGES = ("keras", "keras_hub", "keras_cv", "keras_nlp")


def is_file(path: Path) -> bool:
    """Whether a path is that of a file; no path makes it fail.

    Args:
        path: any text, as a path.
    """
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name too long, or with a NUL
        return False


def expand_user(path: str | Path) -> Path:
    """Return a path with `~` written out, or as it is where there is no such user.

    Args:
        path: any path.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_config(path: Path) -> Any:
    """Return the configuration of the model in a file.

    Args:
        path: A `.keras` or `.h5` file.

    Raises:
        Exception: Whatever zipfile and h5py raise for files that are damaged.
    """
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
                raise ValueError(f"config.json exceeds {MAX_CONFIG_BYTES} bytes")
            return json.loads(archive.read("config.json"))
    import h5py

    with h5py.File(path) as file:
        return json.loads(file.attrs.get("model_config", "{}"))


def has_lambda(config: Any) -> bool:
    """Whether a configuration holds Python code.

    Args:
        config: JSON.
    """
    return any(
        re.split(r"[>.]", str(item.get("class_name")))[-1] in ("Lambda", "__lambda__")
        for item in _objects(config)
    )


def unknown_module(config: Any) -> str | None:
    """Return the module of a custom class that nobody has imported, None if none.

    Older releases of Keras would import it, which runs what lies in it.

    Args:
        config: JSON.
    """
    for item in _objects(config):
        module = item.get("module")
        if not isinstance(module, str) or "class_name" not in item:
            continue
        known = module in sys.modules or module.split(".")[0] in _KERAS_PACKAGES
        name = str(item.get("registered_name"))
        if not known and not keras.saving.get_registered_object(name):
            return module
    return None


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in a value, however deep."""
    inner = [config]
    while inner:
        value = inner.pop()
        if isinstance(value, dict):
            yield value
            inner += value.values()
        elif isinstance(value, list):
            inner += value


def check_zip(path: Path) -> None:
    """Refuse an archive that unpacks to far more than it is, or outside of its folder.

    Args:
        path: A `.keras` or `.npz` file.

    Raises:
        ValueError: It does.
        zipfile.BadZipFile: It is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    size = sum(info.file_size for info in infos)
    limit = hdf5_probe.FREE_BYTES + hdf5_probe.MOST_EXPANSION * path.stat().st_size
    if size > limit:
        raise ValueError(f"unpacks to {size} bytes, more than any weights would")
    for info in infos:
        parts = Path(info.filename.replace("\\", "/")).parts
        if ".." in parts or parts[:1] == ("/",):
            raise ValueError(f"holds {info.filename[:80]!r}, outside of the archive")


def check_hdf5(path: Path) -> None:
    """Refuse a file whose HDF5 part hangs, crashes or misleads the HDF5 library.

    Args:
        path: An HDF5 file, or a `.keras` file that holds one.

    Raises:
        ValueError: It does; says how.
    """
    seconds = PROBE_SECONDS + path.stat().st_size / PROBE_BYTES_PER_SECOND
    command = [sys.executable, hdf5_probe.__file__, str(path.absolute())]
    try:
        done = subprocess.run(  # noqa: S603  our own file
            command, capture_output=True, text=True, timeout=seconds, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"HDF5 did not end within {seconds:.0f} s") from error
    if -done.returncode in _OUT_OF_TIME:
        raise ValueError("HDF5 did not end while it read the file")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["HDF5 crashed"]
        raise ValueError(lines[-1])


def check_size(path: Path, config: Any) -> None:
    """Refuse a model of far more weights than its file can hold.

    Builds the model once without values, which takes a fourth of the time of loading.

    Args:
        path: A `.keras` or `.h5` file.
        config: From `read_config`.

    Raises:
        ValueError: It has.
        Exception: Whatever Keras raises for models that cannot be built.
    """
    with keras.StatelessScope(initialize_variables=False):
        model = (
            keras.saving.deserialize_keras_object(
                {**config, "compile_config": None}, safe_mode=True
            )
            if path.suffix == ".keras"
            else keras.models.load_model(path, compile=False, safe_mode=True)
        )
    count = sum(math.prod(variable.shape) for variable in model.variables)
    limit = hdf5_probe.FREE_BYTES + hdf5_probe.MOST_EXPANSION * path.stat().st_size
    if 4 * count > limit:
        raise ValueError(f"its layers have {count} weights, its file far fewer")
