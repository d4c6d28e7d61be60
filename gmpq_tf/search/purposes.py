"""What a policy is for, and which search serves it where none is named."""

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
        options: of it and of the finalists, where they are not the defaults.
    """

    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)


PURPOSES: dict[str, Purpose] = {
    # Measured, in results/loss_delta: tens of points above uniform bits.
    "post_training": Purpose("loss_delta"),
    # A table of the float model does not know what training heals: over 64 policies of
    # ResNet-8 it ranks at 0.1 what two epochs of training make of them, importances
    # trained for two epochs at 0.66 (results/policy_bank). Of the best policies and the
    # uniform one, fine-tuned shortly, the best is taken.
    "fine_tuning": Purpose(
        "edmips", {"epochs": 2, "learning_rate": 0.01, "finalists": 8}
    ),
}
DEFAULT_PURPOSE = "post_training"  # of `search_policy`


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
