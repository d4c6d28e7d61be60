"""Figures of detectors: images with boxes, and precision against recall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from gmpq_tf.report.objects import Curve, Found, ShownObjects
from gmpq_tf.report.plots import BLUE, GREEN, ORANGE, PALETTE, quiet

LEAST_SCORE = 0.5  # of boxes that are drawn
LEAST_IOU = 0.5  # of a right box with its object, as in VOC
MOST_INSIDE = 4  # lines that a panel explains inside; more are explained below it
# Colour and line style of labelled objects, right boxes and wrong boxes.
STYLES = {"object": (BLUE, "-"), "right": (GREEN, "-"), "wrong": (ORANGE, "--")}
MEANING = {
    "object": "labelled object",
    "right": f"found: IoU of {LEAST_IOU:g} or more with an object of its class",
    "wrong": "found, but wrong",
}


def plot_objects(shown: ShownObjects) -> Figure:
    """Draws images with their objects, and with those that each model found.

    Args:
        shown: the images, one row each.

    Returns:
        The figure: a column for the labels and one for each model.
    """
    columns = {"labelled": shown.truth, **shown.models}
    rows = len(shown.images)
    high, wide = shown.images.shape[1:3]
    side = 2.6
    size = (side * len(columns), side * high / wide * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for row in range(rows):
        for column, (name, found) in enumerate(columns.items()):
            own: Any = axes[row, column]
            _show(own, shown.images[row])
            if not row:
                own.set_title(name, fontsize=9, parse_math=False)
            for box, label, state in boxes_of(shown, found, row):
                _draw(own, box, label, state, high, wide)
    lines = [
        Line2D([], [], color=color, linestyle=style, label=MEANING[state])
        for state, (color, style) in STYLES.items()
    ]
    figure.legend(handles=lines, fontsize=8, loc="outside lower center", ncols=1)
    return figure


def boxes_of(
    shown: ShownObjects, found: Found, image: int
) -> list[tuple[np.ndarray, str, str]]:
    """Returns the boxes to draw for an image, each with a text and a state.

    Args:
        shown: the images and their objects.
        found: the objects that a model found, or the labelled ones.
        image: index of the image.

    Returns:
        (box [4], text, state: "object", "right" or "wrong") of each, best first.
    """
    boxes, classes, scores = found.of_image(image)
    names = shown.class_names
    if found is shown.truth:
        return [
            (box, names[int(number)], "object")
            for box, number in zip(boxes, classes, strict=True)
        ]
    real, kinds, _ = shown.truth.of_image(image)
    order = np.argsort(-scores, kind="stable")
    taken: set[int] = set()
    drawn = []
    for index in order[scores[order] >= LEAST_SCORE]:
        shared = overlaps(boxes[index], real)
        overlap = np.where(kinds == classes[index], shared, 0.0)
        best = int(overlap.argmax()) if len(overlap) else -1
        right = best >= 0 and overlap[best] >= LEAST_IOU and best not in taken
        if right:
            taken.add(best)
        text = f"{names[int(classes[index])]} {100 * scores[index]:.0f} %"
        drawn.append((boxes[index], text, "right" if right else "wrong"))
    return drawn


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the IoU of a box with others; unlike `detection.iou` without TensorFlow.

    Args:
        box: [4] as (ymin, xmin, ymax, xmax).
        others: [n, 4] as (ymin, xmin, ymax, xmax).

    Returns:
        [n], 0 to 1.
    """
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = np.prod(np.maximum(others[:, 2:] - others[:, :2], 0), axis=-1)
    union = areas + np.prod(np.maximum(box[2:] - box[:2], 0)) - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)


def plot_precision_recall(curves: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Draws precision against recall, one panel per class.

    Args:
        curves: name of the model -> class -> its curve; classes of all models are
            drawn.

    Returns:
        The figure, with one line per model.
    """
    classes = list(dict.fromkeys(c for of_model in curves.values() for c in of_model))
    columns = min(len(classes), 3)
    rows = math.ceil(len(classes) / columns)
    inside = len(curves) <= MOST_INSIDE
    high = 2.5 if inside else 2.7 + 0.15 * len(curves)
    figure = Figure(figsize=(2.9 * columns, high * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(axes, classes, strict=False):
        # Seven colours and four styles: 28 pairs before one is drawn again.
        styles = zip(cycle(PALETTE), cycle(("-", "--", ":", "-.")), strict=False)
        for (model, own), (color, style) in zip(curves.items(), styles, strict=False):
            if name in own:
                curve = own[name]
                x = np.concatenate([[0.0], curve.recall])
                y = np.concatenate([curve.precision[:1], curve.precision])
                label = f"{model} {curve.area:.3f}"
                panel.plot(x, y, color=color, linestyle=style, lw=1.4, label=label)
        panel.set_title(name, fontsize=9, parse_math=False)  # $ is no formula
        panel.set_xlim(0, 1.02)
        panel.set_ylim(0, 1.02)
        panel.set_xlabel("recall", fontsize=8)
        panel.set_ylabel("precision", fontsize=8)
        under = {} if inside else {"bbox_to_anchor": (0, -0.25)}
        panel.legend(fontsize=7, loc="lower left" if inside else "upper left", **under)
        quiet(panel)
    for panel in axes[len(classes) :]:
        panel.set_axis_off()
    return figure


def _show(axes: Any, image: np.ndarray) -> None:
    grey = image.shape[-1] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray" if grey else None)
    axes.set_axis_off()


def _draw(
    axes: Any, box: np.ndarray, text: str, state: str, high: int, wide: int
) -> None:
    color, style = STYLES[state]
    top, left, bottom, right = np.clip(box, 0, 1) * [high, wide, high, wide]
    place = (left - 0.5, top - 0.5)
    axes.add_patch(
        Rectangle(
            place, right - left, bottom - top, fill=False, ec=color, ls=style, lw=1.4
        )
    )
    axes.text(
        *place,
        text.replace("$", r"\$"),
        fontsize=5.5,
        color="white",
        va="bottom" if top > 0.08 * high else "top",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
    )
