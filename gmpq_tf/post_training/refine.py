"""Applies all corrections that need no labels to a quantized model, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from gmpq_tf.graph import GraphError, layer_macs, read_graph
from gmpq_tf.post_training.open_block import Learned
from gmpq_tf.post_training.open_layer import BlockConfig
from gmpq_tf.post_training.reconstruction import learn_blocks
from gmpq_tf.post_training.rounding import can_learn_rounding
from gmpq_tf.post_training.statistics import FITS, Matched, match_statistics
from gmpq_tf.spelling import suggest
from gmpq_tf.transform.batches import ModelInputs
from gmpq_tf.transform.calibrate import calibrate, first_images
from gmpq_tf.transform.ranges import DEFAULT_RANGE_METHOD, RangeMethod
from gmpq_tf.transform.snap import snap_biases

BATCH = 16
# By default so many images are used that a float pass takes 4e10 multiply-adds, but
# within these bounds.
MACS, LEAST_IMAGES, MOST_IMAGES = 4e10, 128, 1024
STATISTICS = (*FITS, "keep")
ROUNDINGS = ("blocks", "nearest")


@dataclass(frozen=True)
class RefineConfig:
    """Options of `refine`; the defaults suit models with folded BatchNormalization.

    A model with its own BatchNormalization may gain more from
    `snap_biases(student, images)` alone, which measures its statistics again: see
    docs/post_training.md.

    Args:
        ranges: method that sets activation ranges, as for `calibrate`.
        statistics: which channel statistics are matched to the float network: the `fit`
            of `match_statistics`, "mean", "error" or "spread"; "keep": none.
        rounding: "blocks": learn codes, steps, biases and ranges block by block (see
            `learn_blocks`); "nearest": keep the nearest codes, learn nothing.
        images: number of first images to use; None: as many as 4e10 multiply-adds of
            the float model allow, from 128 to 1024.
        blocks: options for learning blocks.

    Raises:
        ValueError: an unknown choice, or no images.
    """

    ranges: str | RangeMethod = DEFAULT_RANGE_METHOD
    statistics: str = "mean"
    rounding: str = "blocks"
    images: int | None = None
    blocks: BlockConfig = field(default_factory=BlockConfig)

    def __post_init__(self) -> None:
        for name, choices in (("statistics", STATISTICS), ("rounding", ROUNDINGS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))}. "
                    f"Received: {name}={value!r}. {suggest(str(value), choices)}"
                )
        if self.images is not None and self.images < 1:
            raise ValueError(
                f"images must be 1 or more. Received: images={self.images!r}."
            )


@dataclass(frozen=True, eq=False)
class Refined:
    """The report of `refine`.

    Args:
        statistics: layer -> gain and shift of its channels.
        blocks: last layer of a block -> result of learning it.
    """

    statistics: Mapping[str, Matched]
    blocks: Mapping[str, Learned]


def default_images(model: keras.Model) -> int:
    """Number of images used by default, from 128 to 1024."""
    try:
        macs = sum(layer_macs(model).values())
    except GraphError:  # image sizes are not fixed
        return LEAST_IMAGES
    images = int(MACS / max(macs, 1))
    return min(max(images, LEAST_IMAGES), MOST_IMAGES)


def _small(student: keras.Model, batches: list[Any]) -> list[Any]:
    """The same images in small batches, unless the model has a fixed batch size."""
    if ModelInputs(read_graph(student)).batch_size is not None:
        return batches
    found = []
    for batch in batches:
        count = len(keras.tree.flatten(batch)[0])
        for start in range(0, count, BATCH):
            part = slice(start, start + BATCH)
            found.append(keras.tree.map_structure(lambda a, p=part: a[p], batch))
    return found


def refine(
    student: keras.Model,
    model: keras.Model,
    images: Any,
    config: RefineConfig | None = None,
    *,
    seed: int = 0,
    state: Any = None,
    progress: bool = True,
) -> Refined:
    """Improves a quantized model with images without labels, ready to export.

        student = gmpq.quantize_model(model, policy)
        refine(student, model, images)

    It sets ranges (`calibrate`), matches statistics (`match_statistics`), learns codes,
    steps, biases and ranges block by block (`learn_blocks`), and rounds biases to the
    grid of the accumulator (`snap_biases`), in this order.

    Args:
        student: from `quantize_model`, calibrated or not; changed in place.
        model: the float model it was made of; not changed.
        images: images as `calibrate` takes them, but no iterator; labels are ignored.
        config: options; None: the defaults.
        seed: seed of everything random.
        state: file that is kept up to date, and from which an interrupted call with the
            same arguments is resumed; None: no file.
        progress: whether a bar is shown on a terminal.

    Returns:
        A report.

    Raises:
        CalibrationError: not a student, or one of another model, or the images cannot
            set its ranges.
        InputError: images do not fit the model.
        ValueError: an unknown method for ranges.
    """
    config = config or RefineConfig()
    count = config.images or default_images(model)
    batches = _small(student, first_images(student, images, count))
    calibrate(student, batches, seed=seed, method=config.ranges)
    statistics: Mapping[str, Matched] = {}
    blocks: Mapping[str, Learned] = {}
    if config.statistics != "keep":
        statistics = match_statistics(student, model, batches, fit=config.statistics)
    if config.rounding == "blocks" and can_learn_rounding(student):
        blocks = learn_blocks(
            student,
            model,
            batches,
            config=config.blocks,
            seed=seed,
            state=state,
            progress=progress,
        )
    snap_biases(student)
    return Refined(statistics, blocks)
