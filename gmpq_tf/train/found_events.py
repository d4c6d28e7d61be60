"""Writes TensorBoard events of the results of a search or a fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from gmpq_tf.attribution import split_head
from gmpq_tf.data import Dataset
from gmpq_tf.detection.region_layers import is_detector
from gmpq_tf.graph import GraphError
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import TENSORBOARD
from gmpq_tf.run.events import (
    ImportancesLog,
    events,
    write_maps,
    write_policy,
    write_values,
)
from gmpq_tf.run.run_config import EventsConfig
from gmpq_tf.run.stage import Stage
from gmpq_tf.search import PolicySearch
from gmpq_tf.train.attribute import attribution_maps, to_pixels

MAP_IMAGES = 4


def importances_log(stage: Stage, searcher: PolicySearch) -> ImportancesLog:
    """Returns the callback that writes a search's importances after each epoch."""
    return ImportancesLog(
        stage.folder, lambda: searcher.importances()["layers"], stage.epochs
    )


def write_search_events(
    stage: Stage, policy: BitwidthPolicy, found: Mapping[str, Any]
) -> None:
    """Writes the policy and the values of a search.

    Args:
        stage: its folder gets the events.
        policy: the policy that was chosen.
        found: the content of `values.json`.
    """
    with events(stage.folder / TENSORBOARD, "result"):
        write_policy(policy)
        write_values(found["values"])


def write_policy_events(stage: Stage, policy: BitwidthPolicy) -> None:
    """Writes the policy that a stage trains with."""
    with events(stage.folder / TENSORBOARD, "result"):
        write_policy(policy)


def write_map_events(
    stage: Stage,
    model: keras.Model,
    network: keras.Model,
    dataset: Dataset,
    run: EventsConfig,
) -> None:
    """Writes Grad-CAM maps of the label on the first held-out images.

    Args:
        stage: its folder gets the events.
        model: the float model.
        network: the quantized network or the hypernet.
        dataset: the images.
        run: how training runs. Where there are no maps, for example on several devices,
            a note says why.
    """
    reason = _why_not(model, dataset, run)
    if reason:
        print(f"Attribution maps are left out of TensorBoard: {reason}.", flush=True)
        return
    images, labels = next(iter(dataset.validation().unbatch().batch(MAP_IMAGES)))
    maps = {
        name: attribution_maps(each, images, labels)
        for name, each in (("float", model), (stage.name, network))
    }
    with events(stage.folder / TENSORBOARD, "attribution"):
        write_maps(to_pixels(np.asarray(images), dataset), maps)


def _why_not(model: keras.Model, dataset: Dataset, run: EventsConfig) -> str | None:
    if getattr(run, "distribution", "none") != "none":
        return "they are drawn on one device"
    if not dataset.labelled or not dataset.sizes["validation"]:
        return "there are no held-out images with labels"
    if is_detector(model):
        return "those of a detector are of boxes, and not drawn"
    try:
        backbone, _ = split_head(model)
    except GraphError as error:
        return str(error).splitlines()[0].rstrip(".")
    if len(backbone.output.shape) != 4 or model.inputs[0].shape[-1] not in (1, 3):
        return "the network looks at no images of 1 or 3 channels"
    return None
