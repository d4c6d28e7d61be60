"""Checks the numbers of channels that the policy of a pruned model records."""

from collections.abc import Mapping
from typing import Any

from gmpq_tf.bits import PolicyError
from gmpq_tf.graph import searchable_layers, searchable_names
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.policy.file import check_object


def check_counts(channels: Any, layers: Mapping[str, Any]) -> None:
    """Refuses numbers of channels that are not valid.

    Args:
        channels: layer name -> number of channels, a whole number above 0.
        layers: layers of the policy.

    Raises:
        PolicyError: a layer is not in the policy, or a number is not valid.
    """
    check_object("channels", channels)
    for name, count in channels.items():
        if name not in layers or type(count) is not int or count < 1:
            raise PolicyError(
                "made_by['channels'] must say of layers of the policy how many they "
                f"have, 1 or more. Received: {name!r:.80}: {count!r:.80}. Search again."
            )


def check_channels(policy: Any, model: Any) -> None:
    """Refuses a model that the policy of a pruned model was not searched for.

    Args:
        policy: a `BitwidthPolicy`.
        model: the functional Keras model it is to be used on.

    Raises:
        PolicyError: a layer has another number of channels than in the search.
    """
    if not policy.channels:
        return
    layers = zip(searchable_names(model), searchable_layers(model), strict=True)
    for name, layer in layers:
        wanted = policy.channels.get(name)
        if wanted is None:
            continue
        kind = getattr(layer, "searchable_kind", None) or type(layer).__name__
        axes = KERNEL_KINDS[kind].axes
        count = int(layer.kernel.shape[axes.index("o")]) if "o" in axes else None
        if count != wanted:
            raise PolicyError(
                "A policy of a pruned model is for that model alone. "
                f"Received: the policy for {policy.model!r}, in which {name!r} has "
                f"{wanted} channels, and a model in which it has {count}. Pass "
                "result.pruned of the search, or the search/pruned.keras that lies "
                "beside the policy."
            )
