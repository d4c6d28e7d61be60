"""Policy files and files of renamed layers: JSON of which every key is checked."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.bits import LAYER_KEYS, PolicyError
from gmpq_tf.layer_names import shorten
from gmpq_tf.names import suggest

FORMAT = 1
KEYS = ("format", "model", "layers", "made_by")
MAX_FILE_BYTES = 10_000_000
PREFIX = "prefix="


def read_policy_file(
    path: str | os.PathLike[str],
) -> tuple[Any, dict[str, tuple[Any, Any]], Any]:
    """Reads a policy file and checks its keys.

    Args:
        path: a file made by `BitwidthPolicy.save`.

    Returns:
        model, layer name -> (weight_bits, activation_bits), made_by; the values are
        for `BitwidthPolicy` to check.

    Raises:
        PolicyError: the file is not a policy of format 1.
        FileNotFoundError: there is no such file.
    """
    content = _read_json(path, "policy file")
    _check_keys("the policy", content, KEYS)
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise PolicyError(
            f"The format of a policy file must be {FORMAT}. "
            f"Received: format={content['format']!r}. Search again, or use the "
            "release of gmpq_tf that wrote the file."
        )
    check_object("layers", content["layers"])
    layers = {name: _parse_layer(name, x) for name, x in content["layers"].items()}
    return content["model"], layers, content["made_by"]


def read_renaming(text: str) -> str | dict[str, str]:
    """Reads how a command line says that layers are called otherwise.

    Args:
        text: `prefix=TEXT`, or a JSON file `{old name: new name}`.

    Returns:
        The prefix, or the mapping: for `BitwidthPolicy.rename`, which checks them.

    Raises:
        PolicyError: the text is neither, or the file is not such a mapping.
    """
    if text.startswith(PREFIX):
        return text.removeprefix(PREFIX)
    if not Path(text).is_file():
        raise PolicyError(
            "Renamed layers must be prefix=TEXT or an existing JSON file. "
            f"Received: {text!r}. Write such as prefix=backbone_, or a file that "
            'holds {"old name": "new name"}.'
        )
    content = _read_json(text, "file of renamed layers")
    check_object("the renamed layers", content)
    return dict(content)


def check_object(name: str, content: Any) -> None:
    """Raises unless a value is a mapping.

    Args:
        name: of the value, for the message.
        content: the value.

    Raises:
        PolicyError: it is something else.
    """
    if not isinstance(content, Mapping):
        raise PolicyError(
            f"{name} must be a mapping with names as keys. "
            f"Received: {name}={content!r:.80}. Pass {{}} or {{name: value}}."
        )


def _read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Reads JSON in which no name occurs twice in one object."""
    size = Path(path).stat().st_size
    if size > MAX_FILE_BYTES:
        raise PolicyError(
            f"A {what} must not exceed {MAX_FILE_BYTES} bytes. "
            f"Received: size={size}. Pass a smaller file."
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_unique_keys)
    except PolicyError:
        raise
    except (ValueError, RecursionError) as error:
        raise PolicyError(
            f"A {what} must be JSON. Received: {error}. Repair that place of {path}, "
            "or pass the file that was meant."
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise PolicyError(
                "A name must occur once. "
                f"Received: {key!r} twice. Delete or rename one of them."
            )
        seen[key] = value
    return seen


def _parse_layer(name: str, content: Any) -> tuple[Any, Any]:
    _check_keys(f"layer {name!r}", content, LAYER_KEYS)
    return content["weight_bits"], content["activation_bits"]


def _check_keys(name: str, content: Any, keys: tuple[str, ...]) -> None:
    check_object(name, content)
    unknown = [key for key in content if key not in keys]
    missing = [key for key in keys if key not in content]
    if unknown or missing:
        near = f" {suggest(unknown[0], keys)}" if unknown else ""
        raise PolicyError(
            f"{name} must have exactly the keys {', '.join(keys)}. "
            f"Received: unknown={shorten(unknown)}, missing={shorten(missing)}.{near}"
        )
