"""How many channels the layers of a pruned model have, by its policy."""

from collections.abc import Mapping
from typing import Any

from gmpq_tf.bits import PolicyError
from gmpq_tf.graph import searchable_layers, searchable_names
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.policy.file import check_object


def check_counts(channels: Any, layers: Mapping[str, Any]) -> None:
    """Raises unless channels are counted as they must be.

    Args:
        channels: layer name -> whole number above 0.
        layers: of the policy.

    Raises:
        PolicyError: no such layer, or no such number.
    """
    check_object("channels", channels)
    for name, count in channels.items():
        if name not in layers or type(count) is not int or count < 1:
            raise PolicyError(
                "made_by['channels'] must say of layers of the policy how many they "
                f"have, 1 or more. Received: {name!r:.80}: {count!r:.80}. Search again."
            )


def check_channels(policy: Any, model: Any) -> None:
    """Raises where a policy of a pruned model meets another one.

    Args:
        policy: a `BitwidthPolicy`.
        model: the functional Keras model it is to be used on.

    Raises:
        PolicyError: a layer has other channels than the policy was searched with.
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
