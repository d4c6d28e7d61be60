"""Checks that a policy covers the whole backbone of a larger network."""

from collections.abc import Collection
from typing import Any

from gmpq_tf.bits import PolicyError
from gmpq_tf.graph import is_searchable, read_graph
from gmpq_tf.layer_kinds import Role
from gmpq_tf.policy.renaming import shorten


def check_whole(policy: str, model: Any, named: Collection[str]) -> None:
    """Refuses a model with further layers between those that a policy names.

    Args:
        policy: name of the policy's model, for the message.
        model: a built functional Keras model.
        named: layers that the policy has, or is known to lack.

    Raises:
        PolicyError: there are such layers.
    """
    if missing := layers_between(model, named):
        raise PolicyError(
            "The layers of a policy must be a whole backbone: others come before or "
            f"after them. Received: the policy for {policy!r}, between whose layers "
            f"{model.name!r} has {len(missing)} more, {shorten(missing)}. Take a "
            "policy of the model's own backbone; where they are meant to be there, "
            "give them bits first (policy.merge)."
        )


def layers_between(model: Any, named: Collection[str]) -> list[str]:
    """Searchable layers on a path from one named layer to another.

    In a detector of two stages, whose stages become two files, paths end where the
    first stage ends.

    Args:
        model: a built functional Keras model.
        named: names of layers.

    Returns:
        Names in graph order, without those in `named`.
    """
    calls = [call for call in read_graph(model).calls if call.role is not Role.HOST]
    behind: set[int] = set()
    for call in calls:
        if call.name in named or behind.intersection(call.inputs):
            behind.update(call.outputs)
    before: set[int] = set()
    for call in reversed(calls):
        if call.name in named or before.intersection(call.outputs):
            before.update(call.inputs)
    found = [
        call.name
        for call in calls
        if is_searchable(call.layer)
        and call.name not in named
        and behind.intersection(call.inputs)
        and before.intersection(call.outputs)
    ]
    return list(dict.fromkeys(found))
