"""All that helps a quantized model without training on labels, in the right order."""

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
# Multiply-adds of a float pass over the images, by default, and between how many.
MACS, LEAST_IMAGES, MOST_IMAGES = 4e10, 128, 1024
STATISTICS = (*FITS, "keep")
ROUNDINGS = ("blocks", "nearest")


@dataclass(frozen=True)
class RefineConfig:
    """What `refine` does; the defaults are for folded BatchNormalization, or none.

    With BatchNormalization of its own a network may gain more from statistics measured
    again, `snap_biases(student, images)`, alone: see docs/post_training.md.

    Args:
        ranges: how activation ranges are set, as `calibrate`'s method.
        statistics: which of each channel's are made those of the float network: a `fit`
            of `match_statistics`, "mean", "error" or "spread"; "keep": none.
        rounding: "blocks": codes, steps, biases and ranges are learned block by block,
            see `learn_blocks`; "nearest": not.
        images: the first so many are used; None: as many as 4e10 multiply-adds of the
            float model allow, 128 at least and 1024 at most.
        blocks: how blocks are learned.

    Raises:
        ValueError: another choice, or no images.
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
    """What `refine` did.

    Args:
        statistics: layer -> gain and shift of its channels.
        blocks: last layer of a block -> what was learned of it.
    """

    statistics: Mapping[str, Matched]
    blocks: Mapping[str, Learned]


def default_images(model: keras.Model) -> int:
    """How many images are used where nothing is said."""
    try:
        macs = sum(layer_macs(model).values())
    except GraphError:  # sizes that are not fixed
        return LEAST_IMAGES
    images = int(MACS / max(macs, 1))
    return min(max(images, LEAST_IMAGES), MOST_IMAGES)


def _small(student: keras.Model, batches: list[Any]) -> list[Any]:
    """The same images in batches that take little memory, where the model allows it."""
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
    """Make a quantized model as good as images without labels can, ready to export.

        student = gmpq.quantize_model(model, policy)
        refine(student, model, images)

    In this order: ranges (`calibrate`), statistics (`match_statistics`), codes, steps,
    biases and ranges block by block (`learn_blocks`), biases on the grid of the
    accumulator (`snap_biases`).

    Args:
        student: from `quantize_model`, calibrated or not; changed in place.
        model: the float model it was made of; not changed.
        images: without labels, or with labels that are not looked at; as `calibrate`
            takes them, but no iterator.
        config: what is done; None: the defaults.
        seed: of everything random.
        state: file from which an interrupted call goes on with the same arguments, and
            that is kept up to date; None: none.
        progress: whether a terminal sees a bar.

    Returns:
        What was done.

    Raises:
        CalibrationError: not a student, one of another model, or images that cannot
            set its ranges.
        InputError: images that do not fit.
        ValueError: an unknown method of ranges.
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
