"""Looks names up in registries; errors suggest the nearest valid name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def suggest(name: str, valid: Iterable[str]) -> str:
    """Returns a sentence that names the valid name nearest to a wrong one.

    Args:
        name: the name that was not found.
        valid: the names that would have been accepted.

    Returns:
        `Did you mean 'x'?` if one is near, else the list of all names.
    """
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Valid names: {', '.join(map(repr, valid)) or 'none'}."


def lookup(registry: Mapping[str, T], name: str, what: str) -> T:
    """Returns the entry of a plain-dict registry.

    Args:
        registry: name -> entry.
        name: name of the entry.
        what: what the entries are, for the message.

    Raises:
        ValueError: there is no such name; the message has the nearest one.
    """
    if name not in registry:
        raise ValueError(
            f"Unknown {what}. Received: {name!r}. {suggest(name, registry)}"
        )
    return registry[name]
