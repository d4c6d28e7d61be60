"""Matches given values to the inputs of a model, by name or by order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gmpq_tf.spelling import suggest


class InputError(ValueError):
    """The given values do not fit the inputs of the model."""


def match_inputs(
    structure: Any,
    given: Any,
    inputs: Sequence[Any],
    name_of: Callable[[Any], str],
) -> list[tuple[Any, Any]]:
    """Pairs each input of a model with its value, as a call of a Keras model does.

    A dict is matched by name, however the model was built, and may have more entries
    than the model takes. A list or tuple must be in the order of `inputs`.

    Args:
        structure: the inputs with which the model was built: one, or nested lists,
            tuples and dicts.
        given: the values, in the same structure or an equivalent one.
        inputs: the model's inputs in its own order; for a model built with a dict that
            of the sorted keys.
        name_of: name of an input.

    Returns:
        A pair (input, value) for each input.

    Raises:
        InputError: a name is missing, or there are more or fewer values than inputs.
    """
    if isinstance(given, Mapping):
        return list(_by_name(structure, given, name_of))
    if isinstance(given, (list, tuple)):
        if isinstance(structure, (list, tuple)) and len(structure) == len(given):
            pairs = zip(structure, given, strict=True)
            parts = [match_inputs(s, g, [*leaves_of(s)], name_of) for s, g in pairs]
            return [pair for part in parts for pair in part]
        if len(given) == 1:
            return match_inputs(structure, given[0], inputs, name_of)
    values = list(leaves_of(given))
    if len(values) != len(inputs) or any(isinstance(v, Mapping) for v in values):
        raise InputError(
            f"The model has {len(inputs)} input(s): "
            f"{', '.join(repr(name_of(i)) for i in inputs)}. "
            f"Received: {_described(given)}. Pass a dict by name, or a list in this "
            "order; in a data set (inputs, labels), the inputs as one dict or tuple."
        )
    return list(zip(inputs, values, strict=True))


def check_names(given: Mapping, structure: Mapping) -> None:
    """Refuses names that a model built with a dict does not have.

    Raises:
        InputError: there is such a name; the nearest valid one is given.
    """
    for name in given:
        if name not in structure:
            raise InputError(
                f"Only the model's names may be given. Received: {name!r}. "
                f"{suggest(str(name), map(str, structure))}"
            )


def leaves_of(structure: Any) -> Iterator[Any]:
    """Yields the items of nested lists and tuples; a dict counts as one item."""
    if isinstance(structure, (list, tuple)):
        for item in structure:
            yield from leaves_of(item)
    else:
        yield structure


def _described(given: Any) -> str:
    if isinstance(given, (list, tuple)):
        return f"{type(given).__name__} of {len(given)}"
    return f"one {type(given).__name__}"


def _by_name(
    structure: Any, given: Mapping, name_of: Callable[[Any], str]
) -> Iterator[tuple[Any, Any]]:
    if isinstance(structure, Mapping):
        for key, part in structure.items():
            if key not in given:
                yield from _by_name(part, given, name_of)
            else:
                yield from match_inputs(part, given[key], [*leaves_of(part)], name_of)
    elif isinstance(structure, (list, tuple)):
        for part in structure:
            yield from _by_name(part, given, name_of)
    else:
        name = name_of(structure)
        if name not in given:
            raise InputError(
                f"The inputs must have the model's names. Received: no {name!r} among "
                f"{', '.join(map(repr, given))}. {_nearest(name, given)}"
            )
        yield structure, given[name]


def _nearest(name: str, given: Mapping) -> str:
    """Text: what to do about a missing name."""
    near = suggest(name, map(str, given))
    if near.startswith("Did you mean"):
        return f"{near} Rename it to {name!r}."
    return f"Add {name!r}, or pass a list in the order of model.inputs."
