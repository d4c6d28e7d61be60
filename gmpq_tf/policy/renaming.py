"""Checks that a policy names a model's layers, and renames them."""

from collections.abc import Collection, Mapping
from typing import Any

from gmpq_tf.bits import PolicyError
from gmpq_tf.spelling import suggest


def check_same_names(policy: str, names: Collection[str], wanted: list[str]) -> None:
    """Requires that a policy names exactly the searchable layers of a model.

    Args:
        policy: name of the policy, for the message.
        names: the layers of the policy.
        wanted: the searchable layers of the model.

    Raises:
        PolicyError: names differ; the message says how many match and what may help.
    """
    unknown = [name for name in names if name not in wanted]
    missing = [name for name in wanted if name not in names]
    if unknown or missing:
        near = suggest(*((unknown[0], wanted) if unknown else (missing[0], names)))
        matches = len(wanted) - len(missing)
        raise PolicyError(
            "A policy must name exactly the searchable layers of the model. "
            f"Received: the policy for {policy!r}, of which {matches} layers match "
            f"the model's {len(wanted)}, with unknown={shorten(unknown)}, "
            f"missing={shorten(missing)}. {near} {_remedy(unknown, missing, matches)}"
        )


def check_adapts(
    policy: str, names: list[str], wanted: list[str], dropped: list[str]
) -> set[str]:
    """Returns the layers of a policy whose bits a larger model takes over.

    Args:
        policy: name of the policy, for the message.
        names: the layers of the policy.
        wanted: the searchable layers of the model.
        dropped: layers of the policy that are not taken over.

    Raises:
        PolicyError: a layer is neither in the model nor dropped, a dropped one is not
            in the policy, or none is left.
    """
    for name in dropped:
        if name not in names:
            raise PolicyError(
                "A dropped layer must be one of the policy's. "
                f"Received: {name!r}, policy for {policy!r}. {suggest(name, names)}"
            )
    kept = [name for name in names if name not in dropped]
    unknown = [name for name in kept if name not in wanted]
    matched = len(kept) - len(unknown)
    if unknown or not matched:
        listed = ", ".join(map(repr, unknown[:5]))
        raise PolicyError(
            "Every layer of a policy must be in the model it is adapted to, or be "
            f"dropped. Received: the policy for {policy!r}, of which {matched} layers "
            f"match the model's {len(wanted)}, with unknown={shorten(unknown)}. "
            f"{suggest(unknown[0], wanted) if unknown else ''} Drop what the model "
            f"does not need: drop=[{listed}] (--drop_layers); where only names "
            "differ, rename the layers first (policy.rename, --rename_layers)."
        )
    return set(kept)


def new_names(names: Collection[str], renaming: Any) -> dict[str, str]:
    """Returns the name of each layer after a renaming, checked.

    Args:
        names: the layers of the policy.
        renaming: a prefix for every name, or old name -> new name; layers that are not
            listed keep their names.

    Returns:
        Old name -> new name, for every layer, in the same order.

    Raises:
        PolicyError: a key is not a layer, a new name is not text, or two layers would
            share one name.
    """
    if isinstance(renaming, str) and renaming:
        return {name: f"{renaming}{name}" for name in names}
    if not isinstance(renaming, Mapping):
        raise PolicyError(
            "Layers must be renamed by a prefix or by a mapping. "
            f"Received: {renaming!r:.80}. Pass 'backbone_' or {{old name: new name}}."
        )
    for old, new in renaming.items():
        _check_renamed(names, old, new)
    renamed = {name: renaming.get(name, name) for name in names}
    _check_distinct(renamed)
    return renamed


def shorten(names: list[str], limit: int = 5) -> str:
    """Returns a list of names as text with only the first few.

    Args:
        names: the names.
        limit: how many names are written.

    Returns:
        Text such as "['a', 'b'] and 7 more".
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{names[:limit]}{more}"


def _check_renamed(names: Collection[str], old: Any, new: Any) -> None:
    if old not in names:
        raise PolicyError(
            "A renamed layer must be one of the policy's. "
            f"Received: {old!r} -> {new!r}. {suggest(str(old), names)}"
        )
    if not isinstance(new, str) or not new:
        raise PolicyError(
            "A layer name must be text. "
            f"Received: {old!r} -> {new!r}. Use the name of the Keras layer."
        )


def _check_distinct(renamed: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for old, new in renamed.items():
        if new in first:
            raise PolicyError(
                "No two layers may get one name. "
                f"Received: {first[new]!r} and {old!r} -> {new!r}. "
                "Give one of them another name."
            )
        first[new] = old


def _remedy(unknown: list[str], missing: list[str], matches: int) -> str:
    """Text: what to do about names that differ; a renaming only if it is likely."""
    search = "use the model it was searched on, or search again for this model."
    if not unknown or not missing:
        return search.capitalize()
    added, removed = _added_prefix(unknown, missing), _added_prefix(missing, unknown)
    if added and not matches:  # a prefix would spoil those that match
        rename = f"policy.rename({added!r}) (--rename_layers=prefix={added})"
    elif removed:
        rename = f"policy.rename({{n: n.removeprefix({removed!r}) for n in policy}})"
    else:
        rename = "policy.rename({old: new}) (--rename_layers=FILE)"
    return f"Where only names differ, rename the layers: {rename}; otherwise {search}"


def _added_prefix(names: list[str], longer: list[str]) -> str:
    """The text before every name that makes it one of the longer ones, or ""."""
    found = [name for name in longer if name.endswith(names[0])]
    prefixes = [name.removesuffix(names[0]) for name in found]
    whole = [p for p in prefixes if all(f"{p}{name}" in longer for name in names)]
    return whole[0] if whole else ""
