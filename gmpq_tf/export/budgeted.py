"""The budget that a student's policy was searched for, where its file must keep it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.budget import FILE_BYTES, LATENCY_MS
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import POLICY


def beyond_budget(folder: Path, size: int, storage: str | None = None) -> str:
    """Returns a warning if a file exceeds the budget of its policy; else "".

    Args:
        folder: folder of the fine-tuned model.
        size: size of the file, in bytes.
        storage: storage of the file; None: not known.
    """
    wanted = budgeted_storage(folder)
    for limit in _limits(_policy_config(folder)):
        if limit.get("resource") == FILE_BYTES and size > limit["limit"]:
            remedy = (
                f"Give --storage={wanted}, that of the search"
                if storage != wanted
                else f"Search with {size - limit['limit']:.0f} bytes less"
            )
            return (
                f": more than the {limit['limit']:.0f} that the policy was searched "
                f"for. {remedy}."
            )
    return ""


def budgeted_storage(folder: Path) -> Any:
    """Returns the storage for which the budget of a policy holds; "fast" without one.

    Args:
        folder: folder of the fine-tuned model.
    """
    config = _policy_config(folder)
    resources = {limit.get("resource") for limit in _limits(config)}
    if not resources & {FILE_BYTES, LATENCY_MS}:
        return "fast"
    default = "smallest" if FILE_BYTES in resources else "fast"
    return config.get("storage") or default


def _policy_config(folder: Path) -> Mapping[str, Any]:
    """The recorded options of the search of a folder's policy; {} if there are none."""
    config = BitwidthPolicy.load(folder / POLICY).made_by.get("config")
    return config if isinstance(config, Mapping) else {}


def _limits(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return config.get("limits") or []
