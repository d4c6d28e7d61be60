"""The policy that a flag describes."""

from __future__ import annotations

import re
from pathlib import Path

import keras

from gmpq_tf.models.file_checks import is_file
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.policy.file import read_renaming


def read_policy(
    text: str, model: keras.Model, rename_layers: str | None = None
) -> BitwidthPolicy:
    """Returns the policy that a flag describes; whether it suits is for others to say.

    Args:
        text: a policy file, or `uniform:WEIGHT_BITS,ACTIVATION_BITS` (first and last
            layer at 8).
        model: the float model, whose layers a uniform policy names.
        rename_layers: how the layers of a policy file are called in the model:
            `prefix=TEXT` or a JSON file `{old name: new name}`; None: the same.

    Returns:
        A policy.

    Raises:
        PolicyError: the text is none of the forms, or a file is unusable.
    """
    match = re.fullmatch(r"uniform:(\d+),(\d+)", text)
    if match and not rename_layers:
        return BitwidthPolicy.uniform(model, int(match[1]), int(match[2]))
    if match:
        raise PolicyError(
            "Only the layers of a policy file can be renamed. "
            f"Received: policy={text!r}, rename_layers={rename_layers!r}. "
            "Leave --rename_layers out: a uniform policy has the model's names."
        )
    if not is_file(Path(text)):
        raise PolicyError(
            "A policy must be an existing file, uniform:W,A or random:SEED (the last "
            f"only to fine-tune). Received: policy={text!r}. Search one with "
            "`python -m train.search`, or give such as --policy=uniform:3,3."
        )
    policy = BitwidthPolicy.load(text)
    return policy.rename(read_renaming(rename_layers)) if rename_layers else policy
