"""A small network's files, whole and with a changed configuration."""

import functools
import io
import json
import tempfile
import zipfile
from pathlib import Path

import h5py
import keras


@functools.cache
def network():
    inputs = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Conv2D(2, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.Flatten(name="flat")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="dense")(x), name="net")


@functools.cache
def saved(suffix):
    """Bytes of the network's file, or of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{suffix}")
        save = network().save_weights if "weights" in suffix else network().save
        save(path)
        return path.read_bytes()


def members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_config(suffix, change):
    """The network's file after `change(layers of its configuration)`."""
    content = saved(suffix)
    if suffix == ".keras":
        files = members(content)
        config = json.loads(files["config.json"])
        change(config["config"]["layers"])
        return zipped(files | {"config.json": json.dumps(config)})
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"]["layers"])
        file.attrs["model_config"] = json.dumps(config)
    return buffer.getvalue()
