"""Reads tensors by name from weight files, in formats that cannot carry code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.models.file_checks import check_hdf5, check_zip, expand_user, is_file
from gmpq_tf.models.files import load_model
from gmpq_tf.spelling import suggest

_NORMALIZATION = ("gamma", "beta", "moving_mean", "moving_variance")
_UNUSED_SUFFIX = ".num_batches_tracked"  # A counter of PyTorch that inference ignores.


class WeightsError(ValueError):
    """Weights are missing, unreadable or those of another network."""


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """Tensors by name, and further information of the file on their network.

    Args:
        origin: Path, or another name for messages.
        library: `"keras"` (tensors are called `layer/kernel`) or `"torchvision"`
            (`layer1.0.conv1.weight`).
        tensors: Name -> float32 array, in the order of the file.
        layers: Names of all layers, including those without weights; Keras only.
        model_name: Name of the model, None where the file has none.
        ordered: Whether layers are stored in the order of the network. Keras matches
            the layers of such `.h5` files by order, not by name.
    """

    origin: str
    library: str
    tensors: Mapping[str, np.ndarray]
    layers: tuple[str, ...] = ()
    model_name: str | None = None
    ordered: bool = False


def read_weight_file(path: str | Path) -> WeightFile:
    """Reads a weight file.

    Args:
        path: A model or weights of Keras (`.keras`, `.weights.h5`, `.h5`), or a
            torchvision state dict as `.safetensors` or `.npz`.

    Returns:
        Every tensor of the network; optimizer states are left out.

    Raises:
        WeightsError: The file is missing, truncated, of another kind, or holds a value
            that is not finite.
    """
    path = expand_user(path)
    reader = READERS.get(path.suffix)
    if reader is None or not is_file(path):
        raise WeightsError(
            "Weights must be 'imagenet' or an existing file "
            f"({', '.join(READERS)}). Received: weights={str(path)!r:.200}. "
            f"{suggest(str(path)[:200], ['imagenet'])}"
        )
    try:
        file = reader(path)
    except Exception as error:  # Each library raises its own kinds of errors.
        raise _unreadable(path, error) from error
    _check_values(file)
    return file


def file_of_model(model: keras.Model, origin: str) -> WeightFile:
    """Returns the tensors of a Keras model as if read from a file.

    Args:
        model: A model without nested models.
        origin: The name of the model in messages.
    """
    arrays = {layer.name: layer.get_weights() for layer in model.layers}
    layers = tuple(layer.name for layer in model.layers)
    return WeightFile(origin, "keras", _by_layer(arrays), layers, model.name)


def _read_keras(path: Path) -> WeightFile:
    return file_of_model(load_model(path), str(path))


def _read_h5(path: Path) -> WeightFile:
    import h5py

    check_hdf5(path)
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            return _read_layer_groups(path, root, json.loads(_config_of(file)))
        return _read_weights_h5(path, file)


def _config_of(file: Any) -> str:
    return file.attrs.get("model_config", "{}")


def _read_layer_groups(path: Path, root: Any, config: Any) -> WeightFile:
    """Reads the format of Keras 2: one group per layer, in the order of the network."""
    datasets = _datasets(root)
    names = [_text(name) for name in root.attrs["layer_names"]]
    stored = {
        name: [_text(weight) for weight in root[name].attrs["weight_names"]]
        for name in names
    }
    arrays = {
        name: [_array(datasets[f"{name}/{weight}"]) for weight in weights]
        for name, weights in stored.items()
    }
    model_name = config.get("config", {}).get("name")
    return WeightFile(
        str(path), "keras", _by_layer(arrays), tuple(names), model_name, not config
    )


def _read_weights_h5(path: Path, file: Any) -> WeightFile:
    """Reads the format of Keras 3: `layers/conv2d_1/vars/0`, the name an attribute."""
    arrays: dict[str, list[np.ndarray]] = {}
    others: dict[str, np.ndarray] = {}
    for name, dataset in sorted(_datasets(file).items(), key=_natural):
        parts = name.split("/")
        if parts[0] == "optimizer" or "seed_generator" in parts:
            continue  # State of the optimizer or of random numbers.
        if len(parts) == 4 and parts[0] == "layers" and parts[2] == "vars":
            layer = _text(dataset.parent.attrs.get("name", parts[1]))
            arrays.setdefault(layer, []).append(_array(dataset))
        else:
            others[name] = _array(dataset)
    groups = file["layers"].values() if "layers" in file else ()
    layers = [_name_of(group) for group in groups]
    return WeightFile(
        str(path),
        "keras",
        {**_by_layer(arrays), **others},
        tuple(filter(None, layers)),
        _name_of(file),
    )


def _name_of(group: Any) -> str | None:
    """Returns the name of a layer or model, which Keras 3 stores as an attribute."""
    variables = group.get("vars")
    name = None if variables is None else variables.attrs.get("name")
    return None if name is None else _text(name)


def _datasets(root: Any) -> dict[str, Any]:
    """Returns path -> array for all arrays of an HDF5 file, in its order."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "shape"):
            found[name] = item

    root.visititems(visit)
    return found


def _read_safetensors(path: Path) -> WeightFile:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise WeightsError(
            "Reading .safetensors needs the package safetensors. "
            f"Received: {path}. Run `pip install gmpq-tf[safetensors]`."
        ) from error
    return _state_dict(path, load_file(path))


def _read_npz(path: Path) -> WeightFile:
    check_zip(path)
    with np.load(path, allow_pickle=False) as arrays:
        return _state_dict(path, {name: arrays[name] for name in arrays.files})


def _state_dict(path: Path, tensors: Mapping[str, Any]) -> WeightFile:
    kept = {
        name: np.asarray(tensor, np.float32)
        for name, tensor in tensors.items()
        if not name.endswith(_UNUSED_SUFFIX)
    }
    return WeightFile(str(path), "torchvision", kept)


# Suffix -> reader. The suffix of "a.weights.h5" is ".h5" too; that reader tells them
# apart by content.
READERS = {
    ".keras": _read_keras,
    ".h5": _read_h5,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}


def _by_layer(arrays: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Names the variables of each layer by their position, as `layer/kernel`."""
    return {
        f"{layer}/{variable}": value
        for layer, values in arrays.items()
        for variable, value in zip(_variable_names(values), values, strict=True)
    }


def _variable_names(values: Sequence[np.ndarray]) -> Iterable[str]:
    if len(values) == 4 and all(value.ndim == 1 for value in values):
        return _NORMALIZATION
    if len(values) in (1, 2):
        return ("kernel", "bias")[: len(values)]
    return map(str, range(len(values)))


def _natural(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """Returns a sort key that puts conv2d_2 before conv2d_10."""
    parts = item[0].replace("_", "/").split("/")
    return [(int(p) if p.isdigit() else -1, p) for p in parts]


def _array(dataset: Any) -> np.ndarray:
    return np.asarray(dataset[()], np.float32)


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _check_values(file: WeightFile) -> None:
    for name, tensor in file.tensors.items():
        is_variance = name.endswith(("moving_variance", "running_var"))
        if not np.isfinite(tensor).all() or (is_variance and (tensor < 0).any()):
            raise WeightsError(
                "Weights must be finite numbers, and variances 0 or more. "
                f"Received: {file.origin}, whose {name!r} holds others. "
                "Use weights from before the training diverged."
            )


def _unreadable(path: Path, error: Exception) -> WeightsError:
    if isinstance(error, WeightsError):
        return error
    cause = " ".join(str(error).split())[:200]
    return WeightsError(
        "A weight file must be whole and of the kind its suffix says. "
        f"Received: {path} ({type(error).__name__}: {cause}). "
        "Copy or save it again; a .pth file must be converted to .safetensors first."
    )
