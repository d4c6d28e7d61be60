"""Reads policy files and files of renamed layers: JSON with checked keys."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.bits import LAYER_KEYS, PolicyError
from gmpq_tf.files import parse_json, read_text
from gmpq_tf.policy.renaming import shorten
from gmpq_tf.spelling import suggest

FORMAT = 1
KEYS = ("format", "model", "layers", "made_by")
# Format of policies for pruned models, which fit no other model. It differs so that
# older releases, which would not check that, refuse the file.
PRUNED_FORMAT, CHANNELS = 2, "channels"  # a key of made_by
PREFIX = "prefix="
LONGEST_NAME = 1000  # characters of a layer name, since messages quote them


def read_policy_file(
    path: str | os.PathLike[str],
) -> tuple[Any, dict[str, tuple[Any, Any]], Any]:
    """Reads a policy file and checks its keys.

    Args:
        path: a file made by `BitwidthPolicy.save`.

    Returns:
        model, layer name -> (weight_bits, activation_bits), made_by. `BitwidthPolicy`
        checks the values.

    Raises:
        PolicyError: the file is not a policy of format 1, or 2 of a pruned model.
        FileNotFoundError: there is no such file.
    """
    content = _read_json(path, "policy file")
    _check_keys("the policy", content, KEYS)
    known = number_of(content["made_by"])
    if type(content["format"]) is not int or content["format"] != known:
        raise PolicyError(
            f"The format of a policy file must be {FORMAT}, or {PRUNED_FORMAT} where "
            f"made_by says {CHANNELS}. "
            f"Received: format={content['format']!r:.80}. Search again, or use the "
            "release of gmpq_tf that wrote the file."
        )
    check_object("layers", content["layers"])
    for name in content["layers"]:
        _check_name(name)
    layers = {name: _parse_layer(name, x) for name, x in content["layers"].items()}
    return content["model"], layers, content["made_by"]


def number_of(made_by: Any) -> int:
    """Returns the format of a policy's file, which differs for pruned models."""
    pruned = isinstance(made_by, Mapping) and made_by.get(CHANNELS)
    return PRUNED_FORMAT if pruned else FORMAT


def read_renaming(text: str) -> str | dict[str, str]:
    """Reads a renaming of layers from a command line option.

    Args:
        text: `prefix=TEXT`, or a JSON file `{old name: new name}`.

    Returns:
        The prefix or the mapping, for `BitwidthPolicy.rename`, which checks them
        against the layers of the policy.

    Raises:
        PolicyError: the text is neither, or the file is not such a mapping.
    """
    if text.startswith(PREFIX):
        return text.removeprefix(PREFIX)
    if not _is_file(text):
        raise PolicyError(
            "Renamed layers must be prefix=TEXT or an existing JSON file. "
            f"Received: {text!r:.200}. Write such as prefix=backbone_, or a file that "
            'holds {"old name": "new name"}.'
        )
    content = _read_json(text, "file of renamed layers")
    check_object("the renamed layers", content)
    for name in (*content, *content.values()):
        _check_name(name)
    return dict(content)


def check_object(name: str, content: Any) -> None:
    """Requires a mapping.

    Args:
        name: name of the value, for the message.
        content: the value.

    Raises:
        PolicyError: it is something else.
    """
    if not isinstance(content, Mapping):
        raise PolicyError(
            f"{name} must be a mapping with names as keys. "
            f"Received: {name}={content!r:.80}. Pass {{}} or {{name: value}}."
        )


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # such as a name that is too long
        return False


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise PolicyError(
            f"A layer name must be text of 1 to {LONGEST_NAME} characters. "
            f"Received: name={name!r:.80}. Use the name of the Keras layer."
        )


def _read_json(path: str | os.PathLike[str], what: str) -> Any:
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise PolicyError(
            f"A {what} must be JSON. Received: {error}. Repair that place of {path}, "
            "or pass the file that was meant."
        ) from error


def _parse_layer(name: str, content: Any) -> tuple[Any, Any]:
    _check_keys(f"layer {name!r}", content, LAYER_KEYS)
    return content["weight_bits"], content["activation_bits"]


def _check_keys(name: str, content: Any, keys: tuple[str, ...]) -> None:
    check_object(name, content)
    unknown = [key[:80] for key in content if key not in keys]
    missing = [key for key in keys if key not in content]
    if unknown or missing:
        near = f" {suggest(unknown[0], keys)}" if unknown else ""
        raise PolicyError(
            f"{name} must have exactly the keys {', '.join(keys)}. "
            f"Received: unknown={shorten(unknown)}, missing={shorten(missing)}.{near}"
        )
