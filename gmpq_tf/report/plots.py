"""The figures of a report, drawn by matplotlib without a window."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.drawing import figure_bytes
from gmpq_tf.report.schema import (
    LOSSES,
    METRICS,
    AttributionMaps,
    LayerImportances,
    ReportError,
    ResultRow,
)

# Okabe and Ito's palette, told apart by colour-blind readers.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#767676"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LONGEST_NAME = 36
MOST_IMAGES = 8


def png_bytes(figure: Figure) -> bytes:
    """Renders a figure.

    Args:
        figure: any matplotlib figure.

    Returns:
        The content of a PNG file; the same figure gives the same bytes.
    """
    return figure_bytes(figure, "png")


def plot_policy(
    policy: BitwidthPolicy, macs: Mapping[str, float] | None = None
) -> Figure:
    """Draws the bits of each layer beside its share of the multiply-adds.

    Args:
        policy: the bits; one row per layer, in the policy's order.
        macs: layer name -> multiply-adds; None leaves the share out.

    Returns:
        The figure; its height grows with the number of layers.

    Raises:
        ReportError: the policy names a layer that `macs` lacks.
    """
    names = list(policy)
    panels: dict[str, tuple[Sequence[float], str]] = {
        "weight bits": ([policy[name].weight_bits for name in names], BLUE),
        "activation bits": ([policy[name].activation_bits for name in names], ORANGE),
    }
    if macs is not None:
        panels["share of MACs (%)"] = (_shares(names, macs), GRAY)
    figure = _layer_figure(len(names))
    rows = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, (values, color)) in zip(rows, panels.items(), strict=True):
        _layer_bars(axes, title, values, color)
    _name_layers(list(rows), names)
    return figure


def _shares(names: Sequence[str], macs: Mapping[str, float]) -> list[float]:
    missing = [name for name in names if name not in macs]
    if missing:
        raise ReportError(
            "every layer of the policy must have a cost. Received: a cost without "
            f"{missing}. Make policy and cost from the same model."
        )
    total = sum(macs.values()) or 1
    return [100 * macs[name] / total for name in names]


def _layer_figure(layers: int) -> Figure:
    return Figure(figsize=(8, 1.1 + 0.21 * max(layers, 4)), layout="constrained")


def _layer_bars(axes: Axes, title: str, values: Sequence[float], color: str) -> None:
    bars = axes.barh(range(len(values)), values, color=color, height=0.72)
    bits = color != GRAY
    axes.bar_label(bars, fmt="%d" if bits else "%.1f", padding=2, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, 9 if bits else 1.18 * max(values))
    axes.set_xticks(range(0, 9, 2) if bits else [])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _name_layers(row: Sequence[Axes], names: Sequence[str]) -> None:
    """Writes layer names at the left, first layer on top, for all axes of a row."""
    labels = [_shorten(name) for name in names]
    row[0].set_yticks(range(len(names)), labels, fontsize=8)
    row[0].set_ylim(len(names) - 0.4, -0.6)
    for axes in row:
        axes.tick_params(axis="y", length=0)


def _shorten(name: str) -> str:
    half = LONGEST_NAME // 2
    short = name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}"
    return _plain(short)


def _plain(text: str) -> str:
    """Escapes dollar signs, which would start a formula."""
    return text.replace("$", r"\$")


def plot_importances(layers: Mapping[str, LayerImportances]) -> Figure:
    """Draws the branch probabilities the search ended with.

    Args:
        layers: layer name -> probabilities; one row per layer, one column per
            bit-width.

    Returns:
        The figure; its height grows with the number of layers.
    """
    figure = _layer_figure(len(layers))
    rows = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(rows, ("weight", "activation"), strict=True):
        bits, grid = _probability_grid(list(layers.values()), kind)
        axes.imshow(grid, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(bits)), [str(bit) for bit in bits], fontsize=8)
        axes.set_title(f"{kind} bits", fontsize=10)
        _write_probabilities(axes, grid)
    _name_layers(list(rows), list(layers))
    return figure


def _probability_grid(
    layers: Sequence[LayerImportances], kind: str
) -> tuple[list[int], np.ndarray]:
    """Returns bit-widths and probabilities [layers, bits]; NaN: no candidate."""
    bits = sorted({bit for layer in layers for bit in getattr(layer, f"{kind}_bits")})
    grid = np.full((len(layers), len(bits)), np.nan)
    for row, layer in enumerate(layers):
        columns = [bits.index(bit) for bit in getattr(layer, f"{kind}_bits")]
        grid[row, columns] = getattr(layer, f"{kind}_probabilities")
    return bits, grid


def _write_probabilities(axes: Axes, grid: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            color = "black" if value > 0.5 else "white"
            text = f"{value:.2f}"
            axes.text(
                column, row, text, color=color, fontsize=7, ha="center", va="center"
            )


def quiet(axes: Axes) -> None:
    """Draws a faint grid, and no frame."""
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def plot_accuracy_bops(rows: Sequence[ResultRow], metric: str = "accuracy") -> Figure:
    """Draws accuracy against cost; up and left is better.

    Args:
        rows: the results; rows whose names start with the same word share a line, and
            those without accuracy are left out.
        metric: meaning of the rows' `accuracy`: a name in `METRICS`.

    Returns:
        The figure, with cost on a logarithmic axis.
    """
    groups: dict[str, list[ResultRow]] = {}
    rows = [row for row in rows if row.accuracy is not None]
    for row in rows:
        groups.setdefault(row.name.split()[0], []).append(row)
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    styles = cycle(zip(PALETTE, MARKERS, strict=True))
    for group, (color, marker) in zip(groups.values(), styles, strict=False):
        points = sorted((row.bit_ops / 1e9, _percent(row)) for row in group)
        cost, accuracy = zip(*points, strict=True)
        axes.plot(cost, accuracy, color=color, marker=marker, ms=8, lw=1, alpha=0.85)
    names = [_group_name(word, group) for word, group in groups.items()]
    axes.legend(axes.lines, names, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    _cost_axis(axes, [row.bit_ops for row in rows])
    _metric_axis(axes, metric)
    quiet(axes)
    return figure


def front(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Returns the Pareto front: rows that no other beats in both accuracy and cost.

    Args:
        rows: results; those without an accuracy are left out.

    Returns:
        The rows of the front, cheapest first.
    """
    best: list[ResultRow] = []
    known = [row for row in rows if row.accuracy is not None]
    for row in sorted(known, key=lambda row: (row.bit_ops, -_goodness(row))):
        if not best or _goodness(row) > _goodness(best[-1]):
            best.append(row)
    return best


def plot_front(
    rows: Sequence[ResultRow], front: Sequence[ResultRow], metric: str = "accuracy"
) -> Figure:
    """Draws the results of a sweep, and a line through the Pareto front.

    Args:
        rows: all results.
        front: the Pareto front, cheapest first.
        metric: meaning of the rows' `accuracy`: a name in `METRICS`.

    Returns:
        The figure, with cost on a logarithmic axis.
    """
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    for some, style, label in ((rows, "o", "every point"), (front, "-", "front")):
        cost = [row.bit_ops / 1e9 for row in some]
        accuracy = [_percent(row) for row in some]
        axes.plot(cost, accuracy, style, color=PALETTE[0], ms=6, lw=1, label=label)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    _cost_axis(axes, [row.bit_ops for row in rows])
    _metric_axis(axes, metric)
    quiet(axes)
    return figure


def _percent(row: ResultRow) -> float:
    """What a row is compared by: a share in percent, a loss as it is."""
    if row.accuracy is None:
        return math.nan
    return 100 * row.accuracy if row.share else row.accuracy


def _goodness(row: ResultRow) -> float:
    return _percent(row) if row.share else -_percent(row)


def _group_name(word: str, group: Sequence[ResultRow]) -> str:
    return _shorten(group[0].name if len(group) == 1 else word)


def _metric_axis(axes: Axes, metric: str) -> None:
    unit = "" if metric in LOSSES else " (%)"
    axes.set_ylabel(f"{METRICS[metric]}{unit}", fontsize=9)


def _cost_axis(axes: Axes, bit_ops: Sequence[float]) -> None:
    """Sets ticks at 1, 2 and 5 of each decade; the margins contain at least one."""
    low, high = min(bit_ops) / 2, max(bit_ops) * 2
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    axes.set_xscale("log")
    axes.set_xticks([tick / 1e9 for tick in ticks if low <= tick <= high])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain_decimal))
    axes.set_xlim(low / 1e9, high / 1e9)
    axes.set_xlabel("cost (GBOPs, logarithmic)", fontsize=9)


def _plain_decimal(value: float, position: int | None = None) -> str:
    """Formats a tick with one significant digit, as ticks lie at 1, 2 and 5."""
    return np.format_float_positional(value, precision=1, fractional=False, trim="-")


def plot_attribution(attribution: AttributionMaps) -> Figure:
    """Draws images above the attribution maps of teacher and students.

    Args:
        attribution: images and maps; the first eight are drawn. Each map is scaled to
            its own largest value; below it stands the rank distance to the teacher.

    Returns:
        The figure: one column per image, one row per network.
    """
    count = min(len(attribution.images), MOST_IMAGES)
    names = ["image", *attribution.maps]
    tall = min(attribution.images.shape[1] / attribution.images.shape[2], 3)
    height = 0.3 + (0.22 + 0.9 * tall) * len(names)
    figure = Figure(figsize=(8, height), layout="constrained")
    # Always the largest number of columns, so that two images are not drawn huge.
    grid = figure.subplots(len(names), MOST_IMAGES, squeeze=False)
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(_row_name(name, attribution.rank_distances), fontsize=8)
    for column in range(count):
        _attribution_column(list(grid[:, column]), attribution, column)
    return figure


def _row_name(name: str, distances: Mapping[str, np.ndarray]) -> str:
    mean = f"\nmean {np.mean(distances[name]):.3f}" if name in distances else ""
    return _shorten(name) + mean


def _attribution_column(
    column: Sequence[Axes], attribution: AttributionMaps, index: int
) -> None:
    image = attribution.images[index]
    image = image[..., 0] if image.shape[-1] == 1 else image
    column[0].imshow(image, cmap="gray", vmin=0, vmax=255)
    column[0].set_title(f"label {attribution.labels[index]}", fontsize=8)
    extent = (0, image.shape[1], image.shape[0], 0)
    for axes, (name, maps) in zip(column[1:], attribution.maps.items(), strict=True):
        axes.imshow(
            maps[index], "cividis", vmin=0, extent=extent, interpolation="bilinear"
        )
        if name in attribution.rank_distances:
            distance = attribution.rank_distances[name][index]
            axes.set_xlabel(f"{distance:.3f}", fontsize=8, labelpad=2)
