"""Reads the policy that a command-line flag describes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import keras

from gmpq_tf.bits import check_layer_bits
from gmpq_tf.graph import searchable_names
from gmpq_tf.models.file_checks import is_file
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.policy.file import read_renaming
from gmpq_tf.report.layout import PRUNED, SEARCHED_POLICY

# The last layer of our classifiers, which no larger network has.
CLASSIFIER_HEAD = "head_dense"


def read_policy(
    text: str,
    model: keras.Model,
    rename_layers: str | None = None,
    other_layers: Sequence[int] | None = None,
    drop_layers: Sequence[str] | None = None,
) -> BitwidthPolicy:
    """Returns the policy that a flag describes; does not check that it fits the model.

    Args:
        text: a policy file, or `uniform:WEIGHT_BITS,ACTIVATION_BITS` (first layer
            and those of outputs at 8).
        model: the float model; a uniform policy is made for its layers.
        rename_layers: how the layers of a policy file are called in the model:
            `prefix=TEXT` or a JSON file `{old name: new name}`; None: by the same
            names.
        other_layers: weight and activation bits of the layers of the model that a
            policy file does not name; None: the file must name all layers.
        drop_layers: layers of the policy file that the model does not have; None with
            `other_layers`: a classifier's `head_dense`.

    Returns:
        A policy.

    Raises:
        PolicyError: the text has none of the forms, or a file is unusable.
    """
    match = re.fullmatch(r"uniform:(\d+),(\d+)", text)
    check_other_layers(other_layers, drop_layers)
    given = {"rename_layers": rename_layers, "other_layers": other_layers}
    named = [name for name, value in given.items() if value]
    if match and not named:
        return BitwidthPolicy.uniform(model, int(match[1]), int(match[2]))
    if match:
        raise PolicyError(
            "Only the layers of a policy file can be renamed or added to. "
            f"Received: policy={text!r}, {named[0]}={given[named[0]]!r}. "
            f"Leave --{named[0]} out: a uniform policy has the model's names."
        )
    if not is_file(Path(text)):
        raise PolicyError(
            "A policy must be an existing file, uniform:W,A or random:SEED (the last "
            f"only to fine-tune). Received: policy={text!r}. Search one with "
            "`python -m train.search`, or give such as --policy=uniform:3,3."
        )
    policy = BitwidthPolicy.load(text)
    if rename_layers:
        policy = policy.rename(read_renaming(rename_layers))
    if other_layers is None:
        return policy
    if drop_layers is None:
        has_head = CLASSIFIER_HEAD in searchable_names(model)
        drop_layers = [n for n in policy if n == CLASSIFIER_HEAD and not has_head]
    weights, activations = other_layers
    return policy.adapt(model, (weights, activations), drop_layers)


def pruned_model(workdir: str | Path, text: str | None) -> Path | None:
    """Finds the pruned float model that belongs to the policy a flag names.

    Args:
        workdir: folder of the run.
        text: as for `read_policy`; None: the workdir's search/policy.json.

    Returns:
        The pruned.keras beside the policy, or that of the workdir's search; None where
        the policy does not belong to a pruned model, or is not a file.

    Raises:
        PolicyError: the policy belongs to a pruned model that is missing.
    """
    path = Path(workdir) / SEARCHED_POLICY if text is None else Path(text)
    if not is_file(path):
        return None
    policy = BitwidthPolicy.load(path)
    if not policy.channels:
        return None
    found = [path.parent / PRUNED, (Path(workdir) / SEARCHED_POLICY).parent / PRUNED]
    for file in filter(Path.is_file, found):
        return file
    raise PolicyError(
        "A policy of a pruned model needs that model. "
        f"Received: {path}, and no {found[0]}. Copy it there from the search, or name "
        "it with --model."
    )


def check_other_layers(
    other_layers: Sequence[int] | None, drop_layers: Sequence[str] | None
) -> None:
    """Refuses unusable values of --other_layers and --drop_layers.

    Args:
        other_layers: weight and activation bits, or None.
        drop_layers: names of layers, or None.

    Raises:
        PolicyError: `other_layers` is not a pair of 2 to 8 bits, or layers are dropped
            without `other_layers`.
    """
    if other_layers is not None:
        check_layer_bits("other_layers", tuple(other_layers))
    elif drop_layers:
        raise PolicyError(
            "Layers are dropped where a policy serves a larger network. Received: "
            f"drop_layers={list(drop_layers)!r} without other_layers. Give the bits of "
            "its other layers, such as --other_layers=8,8."
        )
