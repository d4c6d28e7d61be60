"""Checks a model file before Keras opens it: code, paths outside, oversized content."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
from keras.src.backend.common import global_state  # there is no public way

from gmpq_tf.models import hdf5_probe
from gmpq_tf.spelling import suggest

# Wall-clock limit for a file that never answers. That of processor time is much lower;
# this one must not blame the file where the machine is busy, or was suspended.
PROBE_SECONDS = 600.0
PROBE_BYTES_PER_SECOND = 20e6  # added to the limit: the file may be on a slow disk
MODEL_SUFFIXES = (".keras", ".h5")
MAX_CONFIG_BYTES = 50_000_000
# Signals that end a process whose processor time is used up.
_OUT_OF_TIME = tuple(
    int(getattr(signal, name))
    for name in ("SIGXCPU", "SIGKILL")
    if hasattr(signal, name)
)
_KERAS_PACKAGES = ("keras", "keras_hub", "keras_cv", "keras_nlp")


class ModelFileError(ValueError):
    """A model file is missing, unreadable or not safe to read."""


def is_file(path: Path) -> bool:
    """Whether a path is an existing file; never raises.

    Args:
        path: any text, as a path.
    """
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name too long, or with a NUL
        return False


# Suffixes of other programs' model files -> how to convert them.
_FROM_TFLITE = (
    "A .tflite file holds no layers to train: give the Keras model that it was made of."
)
_FROM_TORCH = (
    "Build the network in Keras and copy the weights; --weights of train.pretrain "
    "reads state dicts of torchvision as .safetensors."
)
_OTHER_FORMATS = {
    ".tflite": _FROM_TFLITE,
    ".lite": _FROM_TFLITE,
    ".onnx": "Build the network in Keras, copy the weights, save it as .keras.",
    ".pb": "A .pb file is a graph without layers: save the Keras model itself as "
    ".keras with model.save('model.keras').",
    ".pt": _FROM_TORCH,
    ".pth": _FROM_TORCH,
    ".safetensors": _FROM_TORCH,
    ".npz": _FROM_TORCH,
    ".hdf5": "Rename it: the same files are read as .h5.",
    ".json": "It holds no weights: keras.models.model_from_json, load_weights, then "
    "model.save('model.keras').",
    ".index": "A checkpoint holds no layers: build the model, model.load_weights, then "
    "model.save('model.keras').",
    ".ckpt": "A checkpoint holds no layers: build the model, model.load_weights, then "
    "model.save('model.keras').",
}


def check_model_path(path: Path, names: Iterable[str] = ()) -> None:
    """Refuses a path that is not a `.keras` or `.h5` file, and says how to get one.

    Args:
        path: The path given as a model.
        names: Built-in names that might have been meant.

    Raises:
        ModelFileError: It is missing, a folder, or a file of another kind.
    """
    if path.suffix in MODEL_SUFFIXES and is_file(path):
        return
    rule = "A model must be a built-in name or an existing .keras or .h5 file."
    if not names:
        rule = "A model must be an existing .keras or .h5 file."
    what, remedy = _what_it_is(path, tuple(names))
    raise ModelFileError(f"{rule} Received: {str(path)!r:.200}{what}. {remedy}")


def _what_it_is(path: Path, names: tuple[str, ...]) -> tuple[str, str]:
    if _is_folder(path):
        return _what_folder(path)
    if is_file(path):
        remedy = _OTHER_FORMATS.get(path.suffix.lower())
        ending = "which ends in none of them"
        return f", {ending}", remedy or "Save it with model.save('model.keras')."
    choices = [*names, *(str(p) for p in _beside(path))]
    near = suggest(str(path)[:200], choices) if choices else ""
    return ", which does not exist", near or "Look at the path."


def _what_folder(path: Path) -> tuple[str, str]:
    if is_file(path / "keras_metadata.pb"):
        return ", a SavedModel of Keras 2", (
            "Load it there (`pip install tf_keras`): tf_keras.models.load_model(folder)"
            ".save('model.h5'), which is read here."
        )
    if is_file(path / "saved_model.pb"):
        return ", a SavedModel", (
            "It holds a graph without layers to quantize: save the Keras model that it "
            "was exported from with model.save('model.keras')."
        )
    inside = ", ".join(sorted(p.name for p in _models_in(path))[:5])
    remedy = f"Name one of the files in it: {inside}." if inside else "Name a file."
    return ", a folder", remedy


def _beside(path: Path) -> list[Path]:
    """Model files in the folder of a path that does not exist."""
    return _models_in(path.parent) if _is_folder(path.parent) else []


def _models_in(folder: Path) -> list[Path]:
    try:
        files = itertools.islice(folder.iterdir(), 1000)
        return [file for file in files if file.suffix in MODEL_SUFFIXES]
    except OSError:
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def expand_user(path: str | Path) -> Path:
    """Returns a path with `~` expanded; unchanged where there is no such user.

    Args:
        path: any path.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_config(path: Path) -> Any:
    """Returns the configuration of the model in a file.

    Args:
        path: A `.keras` or `.h5` file.

    Raises:
        Exception: Any error of zipfile and h5py for damaged files.
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
    return bool(lambda_layers(config))


def lambda_layers(config: Any) -> list[str]:
    """Returns the names of the layers that hold Python code.

    Args:
        config: JSON.

    Returns:
        One name for each function in the configuration: that of the innermost named
        object around it.
    """
    found, inner = [], [(config, "without a name")]
    while inner:
        value, name = inner.pop()
        if isinstance(value, list):
            inner += [(item, name) for item in value]
        if not isinstance(value, dict):
            continue
        options = value.get("config")
        own = options.get("name") if isinstance(options, dict) else None
        name = own if isinstance(own, str) else name
        if _is_code(value):
            found.append(name[:80])
        inner += [(item, name) for item in value.values()]
    return sorted(set(found))


def _is_code(item: dict[str, Any]) -> bool:
    """Whether an object is a Lambda layer or a function: code, defaults, closure."""
    last = re.split(r"[>.]", str(item.get("class_name")))[-1]
    if last in ("Lambda", "__lambda__"):
        return True
    match item:
        case {"value": [str(), _, _]} if len(item) == 1:
            return True
    return False


def unknown_module(config: Any) -> str | None:
    """Finds a custom class in a configuration whose module is not imported yet.

    Older releases of Keras would import the module, which runs its code.

    Args:
        config: JSON.

    Returns:
        The name of the module, or None.
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
    """Yields every JSON object inside a value, at any depth."""
    inner = [config]
    while inner:
        value = inner.pop()
        if isinstance(value, dict):
            yield value
            inner += value.values()
        elif isinstance(value, list):
            inner += value


def check_zip(path: Path) -> None:
    """Refuses an archive that unpacks to far more bytes, or outside of its folder.

    Args:
        path: A `.keras` or `.npz` file.

    Raises:
        ValueError: The archive is unsafe.
        zipfile.BadZipFile: It is not an archive.
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
    """Refuses a file whose HDF5 part hangs, crashes or misleads the HDF5 library.

    Args:
        path: An HDF5 file, or a `.keras` file that holds one.

    Raises:
        ValueError: The file is unsafe; the message says why.
    """
    seconds = PROBE_SECONDS + path.stat().st_size / PROBE_BYTES_PER_SECOND
    command = [sys.executable, hdf5_probe.__file__, str(path.absolute())]
    try:
        done = subprocess.run(  # noqa: S603  runs hdf5_probe.py of this package
            command, capture_output=True, text=True, timeout=seconds, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"HDF5 did not end within {seconds:.0f} s") from error
    if -done.returncode in _OUT_OF_TIME:
        raise ValueError("HDF5 did not end while it read the file")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["HDF5 crashed"]
        raise ValueError(lines[-1])


def check_size(path: Path, config: Any, read_from: Path | None = None) -> None:
    """Refuses a model with far more weights than its file can hold.

    Builds the model once without allocating weights, which takes a quarter of the time
    of loading.

    Args:
        path: A `.keras` or `.h5` file.
        config: From `read_config`.
        read_from: The file that Keras reads in its place, from `keras2.readable`.

    Raises:
        ValueError: The model has too many weights.
        Exception: Any error of Keras for models that cannot be built.
    """
    with _nothing_pending(), keras.StatelessScope(initialize_variables=False):
        model = (
            keras.saving.deserialize_keras_object(
                {**config, "compile_config": None}, safe_mode=True
            )
            if path.suffix == ".keras"
            else keras.models.load_model(
                read_from or path, compile=False, safe_mode=True
            )
        )
    count = sum(math.prod(variable.shape) for variable in model.variables)
    limit = hdf5_probe.FREE_BYTES + hdf5_probe.MOST_EXPANSION * path.stat().st_size
    if 4 * count > limit:
        raise ValueError(f"its layers have {count} weights, its file far fewer")


@contextlib.contextmanager
def _nothing_pending() -> Iterator[None]:
    """Forgets the variables that are made inside and have no values yet.

    Keras would make all values at the end of its next stateless scope, such as the next
    `fit`: the weights of a refused file too, however many they are.
    """
    name = "uninitialized_variables"
    before = len(global_state.get_global_attribute(name) or ())
    try:
        yield
    finally:
        pending = global_state.get_global_attribute(name) or []
        del pending[before:]
