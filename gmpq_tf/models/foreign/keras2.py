"""Translates the configuration of models that Keras 2 saved to that of Keras 3.

Keras 3 reads the `.h5` files of Keras 2, but it refuses some layers because of options
that it does not know and that change nothing (such as `groups: 1`, which Keras 2 wrote
for every depthwise convolution), and it reads others with a different meaning. This
module translates the configuration; a layer without a translation is refused by name.
"""

from __future__ import annotations

import copy
import inspect
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.models.file_checks import ModelFileError

Config = dict[str, Any]
_SAVE_AGAIN = (
    "Load the model with Keras 2 (`pip install tf_keras`), replace that layer by one "
    "that Keras 3 has, copy the weights and save it as .h5 again."
)


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _anything(value: Any) -> bool:
    return True


# Options that some layers of Keras 3 no longer have -> whether a value may be dropped
# without changing the result.
_NO_EFFECT: dict[str, Callable[[Any], bool]] = {
    "groups": _is(1),  # depthwise, separable and transposed convolutions
    "kernel_initializer": _anything,  # the weights are in the file
    "kernel_regularizer": _is(None),
    "kernel_constraint": _is(None),
    "time_major": _is(False),
    "implementation": _anything,  # a choice of algorithm, not of result
    "unroll": _anything,
    "rng_type": _anything,  # layers that augment
    "query_shape": _anything,
    "key_shape": _anything,
    "value_shape": _anything,
    "softmax_robust_masking": _is(False),
    "noise_shape": _is(None),
    "trainable": _anything,  # of layers without weights
    "sparse": _is(False, None),
    "ragged": _is(False, None),
    "optional": _is(False),
    "renorm": _is(False),
    "fused": _anything,
    "virtual_batch_size": _is(None),
    "adjustment": _is(None),
    "dynamic": _is(False),
    "stateful": _is(False),
    "data_format": _is(None, "channels_last"),
    "input_length": _anything,
    "experimental_autocast": _anything,
}
# Options that Keras 3 accepts although no signature has them.
_TAKEN = {"batch_input_shape", "input_shape", "input_dim", "alpha", "axis"}
_RENAMED_CLASSES = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
}
# Functions of TensorFlow that models of Keras 2 call -> the layer that computes the
# same: with a number, with a second tensor, with one tensor alone.
_Layer = tuple[str, Config]
_WITH_NUMBER: dict[str, Callable[[Any], _Layer]] = {
    "add": lambda y: ("Rescaling", {"scale": 1.0, "offset": y}),
    "subtract": lambda y: ("Rescaling", {"scale": 1.0, "offset": -y}),
    "multiply": lambda y: ("Rescaling", {"scale": y, "offset": 0.0}),
    "truediv": lambda y: ("Rescaling", {"scale": 1.0 / y, "offset": 0.0}),
}
_WITH_TENSOR = {"add": "Add", "subtract": "Subtract", "multiply": "Multiply"}
_ALONE: dict[str, _Layer] = {
    "nn.relu": ("ReLU", {}),
    "nn.relu6": ("ReLU", {"max_value": 6.0}),
    "nn.sigmoid": ("Activation", {"activation": "sigmoid"}),
    "math.sigmoid": ("Activation", {"activation": "sigmoid"}),
    "nn.softmax": ("Activation", {"activation": "softmax"}),
    "nn.silu": ("Activation", {"activation": "silu"}),
    "math.tanh": ("Activation", {"activation": "tanh"}),
}


@contextmanager
def readable(path: Path, config: Any) -> Iterator[Path]:
    """Yields a file that Keras 3 reads as the model its author saved.

    Args:
        path: a `.keras` or `.h5` file.
        config: its configuration, from `read_config`.

    Yields:
        The path itself, or that of a temporary copy with the translated configuration,
        which is deleted at the end of the block.

    Raises:
        ModelFileError: a layer, which is named, has no translation.
    """
    if path.suffix != ".h5":
        _refuse_old_archive(path)
    if path.suffix != ".h5" or not isinstance(config, dict):
        yield path
        return
    translated = translate(config, _keras_version(path), path)
    if translated == config:
        yield path
        return
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder, path.name)
        with h5py.File(other, "w") as file:
            file.attrs["model_config"] = json.dumps(translated)
            with h5py.File(path) as source:
                source.copy("model_weights", file)
        yield other


def _refuse_old_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        try:
            version = str(json.loads(archive.read("metadata.json"))["keras_version"])
        except (KeyError, TypeError, ValueError):
            return
    if version.startswith("2."):
        raise ModelFileError(
            "A .keras file must be one of Keras 3, which does not read those of "
            f"Keras 2. Received: {path}, saved by Keras {version}. Save it as .h5, "
            "which is read: tf_keras.models.load_model(path).save('model.h5') "
            "(`pip install tf_keras`)."
        )


def _keras_version(path: Path) -> str:
    import h5py

    with h5py.File(path) as file:
        version = file.attrs.get("keras_version", "2")
    return version.decode() if isinstance(version, bytes) else str(version)


def translate(config: Config, version: str, origin: Path) -> Config:
    """Returns the configuration of a model in the form of Keras 3.

    Args:
        config: configuration from a `.h5` file.
        version: version of Keras that wrote it.
        origin: the file, for messages.

    Returns:
        The configuration; unchanged if Keras 3 wrote it.

    Raises:
        ModelFileError: a layer, which is named, has no translation.
    """
    try:
        return _model(copy.deepcopy(config), version.startswith(("1.", "2")))
    except _UntranslatedError as error:
        raise ModelFileError(
            "Every layer of a .h5 file must be one that Keras 3 has. "
            f"Received: {origin}, saved by Keras {version}, whose {error}. "
            f"{_SAVE_AGAIN}"
        ) from error


class _UntranslatedError(ValueError):
    """A layer has no counterpart in Keras 3."""


def _model(config: Config, old: bool) -> Config:
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    if not isinstance(layers, list):
        return config
    for index, layer in enumerate(layers):
        if isinstance(layer, dict) and isinstance(layer.get("config"), dict | list):
            layers[index] = _layer(layer, old)
    if isinstance(inner, dict):
        named = [x for x in layers if isinstance(x, dict) and "config" in x]
        if old:
            _renumber_calls(inner, named)
            _unwrap(inner)
        _rename_layers(inner, named)
    return config


def _renumber_calls(model: Config, layers: list[Config]) -> None:
    """Numbers calls of inner models from 0; Keras 2 counts their own graph as 0."""
    kinds = {_name(layer): layer["class_name"] for layer in layers if _is_model(layer)}
    called = {name for name in kinds if 0 not in _calls_of(name, layers)}

    def moved(names: set[str]) -> Callable[[list], list]:
        return lambda item: [
            item[0], item[1] - (item[0] in names), *item[2:]
        ]  # fmt: skip

    for layer in layers:
        if "inbound_nodes" in layer:
            layer["inbound_nodes"] = _changed(layer["inbound_nodes"], moved(called))
    if "output_layers" in model:  # Keras 3 handles these, except for Sequential
        names = {name for name in called if kinds[name] == "Sequential"}
        model["output_layers"] = _changed(model["output_layers"], moved(names))


def _unwrap(model: Config) -> None:
    """Replaces lists of one input or output by the tensor; Keras 3 keeps such lists."""
    for key in ("input_layers", "output_layers"):
        tensors = model.get(key)
        if isinstance(tensors, list) and len(tensors) == 1:
            model[key] = tensors[0]


def _is_model(layer: Config) -> bool:
    options = layer["config"]
    return isinstance(options, list) or "layers" in options


def _calls_of(name: str, layers: list[Config]) -> set[int]:
    """Returns the numbers of those calls of a layer whose results are used."""
    found: set[int] = set()

    def seen(item: list) -> list:
        found.update([item[1]] if item[0] == name else [])
        return item

    for layer in layers:
        _changed(layer.get("inbound_nodes"), seen)
    return found


def _rename_layers(model: Config, layers: list[Config]) -> None:
    """Replaces `/` in names, which Keras 3 does not allow, by `_`."""
    names = [_name(layer) for layer in layers]
    new: dict[str, str] = {}
    for name in (name for name in names if "/" in name):
        wanted = name.replace("/", "_")
        while wanted in names or wanted in new.values():
            wanted += "_"
        new[name] = wanted
    if not new:
        return
    for layer in layers:
        for owner in (layer, layer["config"]):
            if isinstance(owner, dict) and owner.get("name") in new:
                owner["name"] = new[owner["name"]]
    for owner in (model, *layers):
        for key in ("inbound_nodes", "input_layers", "output_layers"):
            if key in owner:
                owner[key] = _changed(
                    owner[key], lambda item: [new.get(item[0], item[0]), *item[1:]]
                )


def _changed(value: Any, change: Callable[[list], list]) -> Any:
    """Applies a change to references such as ["conv1/conv", 0, 0] at any depth."""
    if isinstance(value, dict):
        return {key: _changed(item, change) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [_changed(item, change) for item in value]
    is_reference = len(value) > 2 and isinstance(value[0], str)
    return change(items) if is_reference and isinstance(value[1], int) else items


def _layer(layer: Config, old: bool) -> Config:
    options = layer["config"]
    if isinstance(options, list) or "layers" in options:
        return _model(layer, old)
    if "module" in layer:  # has the form of Keras 3 already
        return layer
    name = layer.get("class_name")
    if name in ("TFOpLambda", "SlicingOpLambda"):
        layer = _called_function(layer)
        options = layer["config"]
    wrapped = options.get("layer")
    if isinstance(wrapped, dict) and isinstance(wrapped.get("config"), dict):
        options["layer"] = _layer(wrapped, old)
    layer["class_name"] = _RENAMED_CLASSES.get(str(name), layer.get("class_name"))
    found = getattr(keras.layers, str(layer["class_name"]), None)
    if old:
        _refuse_other_meaning(layer)
    if inspect.isclass(found):
        _check_axis(layer, found)
        _drop_options(layer, found)
    return layer


def _drop_options(layer: Config, found: type) -> None:
    options = layer["config"]
    for key in [key for key in options if key not in accepted_options(found)]:
        value = options[key]
        if key not in _NO_EFFECT or not _NO_EFFECT[key](value):
            raise _UntranslatedError(
                f"{layer['class_name']} {_name(layer)!r} has {key}={value!r:.80}, "
                "which Keras 3 does not have"
            )
        del options[key]


def accepted_options(layer: type) -> set[str]:
    """Returns the names of the arguments that a layer class of Keras takes.

    Args:
        layer: the class; arguments that it passes on to its bases are included.
    """
    names: set[str] = set(_TAKEN)
    for base in layer.__mro__:
        if "__init__" not in base.__dict__:
            continue
        parameters = inspect.signature(base.__dict__["__init__"]).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names - {"self", "args", "kwargs"}


def _check_axis(layer: Config, found: type) -> None:
    """Refuses values of `axis` that Keras 3 ignores when it reads such a file."""
    options = layer["config"]
    if "axis" not in options:
        return
    axis = options["axis"]
    parameter = inspect.signature(found).parameters.get("axis")
    default = parameter.default if parameter else axis
    kept = isinstance(axis, int) or (isinstance(axis, list) and len(axis) == 1)
    if not kept and axis != default:
        raise _UntranslatedError(
            f"{layer['class_name']} {_name(layer)!r} has axis={axis!r:.80}, "
            "which Keras 3 does not read from such a file"
        )


def _refuse_other_meaning(layer: Config) -> None:
    for key, value in layer["config"].items():
        named = value.get("class_name") if isinstance(value, dict) else value
        if "activation" in key and named in ("hard_sigmoid", "HardSigmoid"):
            raise _UntranslatedError(
                f"{layer['class_name']} {_name(layer)!r} has {key}='hard_sigmoid', "
                "which was clip(0.2 x + 0.5, 0, 1) then and is relu6(x + 3) / 6 now"
            )


def _called_function(layer: Config) -> Config:
    """Returns the layer that replaces a call of a TensorFlow function."""
    function = str(layer["config"].get("function"))
    short = function.rpartition(".")[2]
    nodes = layer.get("inbound_nodes")
    try:
        ((source, node, place, arguments),) = nodes  # type: ignore[misc]
        given = {k: v for k, v in arguments.items() if k != "name" and v is not None}
    except (TypeError, ValueError, AttributeError):
        raise _unknown_function(layer, function) from None
    first = [source, node, place, {}]
    if function in _ALONE and not given:
        return _replaced(layer, *_ALONE[function], [first])
    other = given.get("y")
    if set(given) != {"y"} or source == "_CONSTANT_VALUE":
        raise _unknown_function(layer, function)
    if isinstance(other, int | float) and short in _WITH_NUMBER:
        return _replaced(layer, *_WITH_NUMBER[short](other), [first])
    tensor = other if isinstance(other, list) and len(other) == 3 else []
    if tensor and isinstance(tensor[0], str) and short in _WITH_TENSOR:
        return _replaced(layer, _WITH_TENSOR[short], {}, [first, [*tensor, {}]])
    raise _unknown_function(layer, function)


def _replaced(layer: Config, kind: str, options: Config, inbound: list) -> Config:
    kept = {key: v for key, v in layer["config"].items() if key in ("name", "dtype")}
    return {
        "class_name": kind,
        "config": {**kept, **options},
        "name": layer.get("name"),
        "inbound_nodes": [inbound],
    }


def _unknown_function(layer: Mapping[str, Any], function: str) -> _UntranslatedError:
    return _UntranslatedError(
        f"layer {_name(layer)!r} calls the function tf.{function} of TensorFlow, which "
        "no layer here stands for"
    )


def _name(layer: Mapping[str, Any]) -> str:
    options = layer["config"]
    inner = options.get("name") if isinstance(options, dict) else None
    return str(inner or layer.get("name"))
