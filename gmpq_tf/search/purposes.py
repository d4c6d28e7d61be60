"""Purposes of a policy, and the search that each uses by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gmpq_tf.search.errors import StrategyError
from gmpq_tf.spelling import lookup


@dataclass(frozen=True)
class Purpose:
    """A row of `PURPOSES`.

    Args:
        strategy: a name in `STRATEGIES`.
        options: options of the strategy and of the finalists that are not the defaults.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)


PURPOSES: dict[str, Purpose] = {
    # Tens of points of accuracy above uniform bits (results/loss_delta).
    "post_training": Purpose("loss_delta"),
    # A table measured in the float model does not show what training repairs: over 64
    # policies of ResNet-8 its rank correlation with the results of two epochs of
    # training is 0.1; that of importances trained for two epochs is 0.66
    # (results/policy_bank). The best policies and the uniform one are then fine-tuned
    # for a short time, and the best is taken.
    "fine_tuning": Purpose(
        "edmips", {"epochs": 2, "learning_rate": 0.01, "finalists": 8}
    ),
}
DEFAULT_PURPOSE = "post_training"  # default of `search_policy`


def find_purpose(name: str) -> Purpose:
    """The row of `PURPOSES` with this name.

    Raises:
        StrategyError: there is none; the nearest name is given.
    """
    try:
        found: Purpose = lookup(PURPOSES, name, "purpose")
    except (ValueError, TypeError) as error:
        raise StrategyError(f"{error}") from error
    return found
